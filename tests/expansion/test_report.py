"""The report of an expansion."""

from __future__ import annotations

import json

import pytest
from torch import nn

from reptool.blocks import ACBlock, RefConv
from reptool.errors import InputError
from reptool.expansion import expand, expansion_report
from tests.expansion.networks import small


def test_what_it_says() -> None:
    net = small()
    found = expansion_report(expand(net, ACBlock, where=["0", "3"]))
    assert [(s.path, s.norm, s.kernel) for s in found.replaced] == [("0", "1", (3, 3)), ("3", "4", (3, 3))]
    assert found.skipped == {"6": "not selected by where", "9": "not selected by where"}
    assert found.replaced[0].parameters == (3 * 8 * 9 + 16, 3 * 8 * 15 + 48)
    trainable = sum(p.numel() for p in net.parameters())
    assert found.parameters == (trainable, trainable + 3 * 8 * 6 + 32 + 8 * 6 + 32 - 8)
    assert json.loads(found.to_json()) == json.loads(json.dumps(found.to_dict()))


def test_as_a_table() -> None:
    text = str(expansion_report(expand(small(), RefConv)))
    assert "3 convolutions became RefConv" in text
    assert "pointwise" in text


def test_other_models_have_none() -> None:
    with pytest.raises(InputError, match="not returned by"):
        expansion_report(nn.Sequential())
