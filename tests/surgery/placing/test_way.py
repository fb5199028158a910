"""The way through a region of a random program, from its root to its layer and on to its value."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from reptool.plan.select import Chooser
from reptool.surgery.placing.way import carriers, way_of, written_between
from reptool.surgery.traced import Traced
from tests.plan.programs import C, program, traced


@pytest.mark.parametrize("seed", range(40))
def test_the_way_leads_from_the_root_over_the_layer_to_the_value(seed: int) -> None:
    trace, found = traced(program(seed, 6), torch.randn(1, C, 7, 6, dtype=torch.float64))
    known = Traced(trace, found, set(), {}, set())
    for region in Chooser(found, lambda node, form: None, False).regions():
        layers = carriers(known, region.form.ops)
        assert layers
        for carrier in layers:
            way = way_of(known, region, carrier)
            assert set(way) <= region.form.ops - {carrier}
            position = found.reads.position
            line = sorted([*way, carrier], key=position.__getitem__)
            if "parts" in region.value.meta:
                continue  # a part of a sum stands nowhere by itself
            assert line[-1] is region.value
            assert region.root in found.ops[line[0]].sources
            for before, after in pairwise(line):
                assert before in found.ops[after].sources
            assert written_between(known, region, way, carrier) is None
