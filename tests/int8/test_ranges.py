"""Ranges of layers by hand, and of a collapsed block beside what it was made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.errors import InputError
from reptool.int8 import ranges
from reptool.int8.ranges import lost, spread


def test_spread_by_hand() -> None:
    assert spread(torch.tensor([[1.0, -4.0], [2.0, 0.0], [0.0, 0.0], [16.0, 1.0]])) == 4.0
    assert spread(torch.zeros(3, 2)) == 1.0


def test_what_8_bits_lose_by_hand() -> None:
    weight = torch.tensor([[127.0], [0.4]])
    assert lost(weight) == pytest.approx(0.5), "the small channel is gone, the large one is exact"
    assert lost(weight, by_channel=True) == pytest.approx(0.0, abs=1e-12)
    assert lost(torch.zeros(2, 2)) == 0.0
    wide = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    assert 0.001 < lost(wide, by_channel=True) < lost(wide) < 0.02


def test_a_collapsed_block_beside_what_it_was_made_of() -> None:
    model = nn.Sequential(RepVGGBlock(3, 8), RepVGGBlock(8, 8)).eval()
    norm = model[0].branches["dense"].bn
    norm.weight.data[2] = 50.0
    found = ranges(reptool.deploy(model), model)
    assert [r.layer for r in found] == ["0.branches.dense.conv", "1.branches.dense.conv"]
    assert found[0].before is not None
    assert found[0].spread > 10 > found[0].before
    assert found[0].per_tensor > 2 * found[0].per_channel > 0
    assert ranges(reptool.deploy(model))[0].before is None


def test_other_input_is_named() -> None:
    with pytest.raises(InputError, match="was not returned by"):
        ranges(nn.Linear(2, 2))
    deployed = reptool.deploy(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    with pytest.raises(InputError, match="original is the module"):
        ranges(deployed, "model")  # type: ignore[arg-type]
