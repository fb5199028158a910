"""MobileOneBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptool.blocks import MobileOneBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, batch_norm, conv_bn
from tests.blocks.options import Option, mobile_one_options, randomize


@pytest.mark.parametrize("option", list(mobile_one_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    x, plain = option.inputs(), option.plain()
    terms = [
        batch_norm(x, branch, training) if name == "identity" else conv_bn(x, branch, plain, training)
        for name, branch in block.branches.items()
    ]
    torch.testing.assert_close(block(x), block.activation(sum(terms)), **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ({"conv_branches": 3}, ["conv0", "conv1", "conv2", "scale", "identity"]),
        ({"scale": False}, ["conv0", "identity"]),
        ({"kernel_size": 1}, ["conv0", "identity"]),
        ({"stride": 2}, ["conv0", "scale"]),
        ({"conv_branches": 0, "scale": False}, ["identity"]),
    ],
)
def test_branches(arguments: dict[str, Any], branches: list[str]) -> None:
    assert list(MobileOneBlock(8, 8, **arguments).branches) == branches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"conv_branches": -1}, "conv_branches=-1"),
        ({"conv_branches": 0, "scale": False, "identity": False}, "no branches"),
        ({"kernel_size": 2}, "odd"),
        ({"identity": True, "stride": 2}, "identity=True"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MobileOneBlock(8, 8, **arguments)
