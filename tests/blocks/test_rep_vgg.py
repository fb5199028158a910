"""RepVGGBlock."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reptool.blocks import RepVGGBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, batch_norm, conv_bn
from tests.blocks.options import Option, randomize, rep_vgg_options


def formula(block: RepVGGBlock, plain: nn.Module, x: Tensor, training: bool) -> Tensor:
    """act(BN(KxK) + BN(1x1) + BN(x))."""
    y = torch.zeros(())
    for name, branch in block.branches.items():
        term = batch_norm(x, branch, training) if name == "identity" else conv_bn(x, branch, plain, training)
        y = y + term
    return y if isinstance(block.activation, nn.Identity) else y.clamp(min=0)


@pytest.mark.parametrize("option", list(rep_vgg_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block = randomize(option.build(), seed=5).double().train(training)
    assert isinstance(block, RepVGGBlock)
    x = option.inputs()
    expected = formula(block, option.plain(), x, training)
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ({}, ["dense", "point", "identity"]),
        ({"identity": False}, ["dense", "point"]),
        ({"stride": 2}, ["dense", "point"]),
        ({"padding": 0}, ["dense", "point"]),
        ({"padding": 2, "dilation": 2}, ["dense", "point", "identity"]),
        ({"kernel_size": 1}, ["dense", "identity"]),
        ({"kernel_size": 1, "stride": 2}, ["dense"]),
        ({"out_channels": 16}, ["dense", "point"]),
    ],
)
def test_branches(arguments: dict[str, int], branches: list[str]) -> None:
    block = RepVGGBlock(**{"in_channels": 8, "out_channels": 8, **arguments})
    assert list(block.branches) == branches


def test_kernel_sizes() -> None:
    branches = RepVGGBlock(8, 8, (3, 5)).branches
    assert branches["dense"].get_submodule("conv").kernel_size == (3, 5)
    assert branches["point"].get_submodule("conv").kernel_size == (1, 1)


def test_blocks_do_not_share_their_activation() -> None:
    assert RepVGGBlock(4, 4).activation is not RepVGGBlock(4, 4).activation
    shared = nn.PReLU()
    assert RepVGGBlock(4, 4, activation=shared).activation is shared


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size=4 was given, expected odd sizes"),
        ({"kernel_size": 0}, r"at least 1"),
        ({"kernel_size": (3, 3, 3)}, r"or 2 of them"),
        ({"stride": 0}, r"stride=0"),
        ({"padding": -1}, r"padding=-1"),
        ({"dilation": 1.5}, r"dilation=1\.5"),
        ({"groups": 3}, r"use a divisor of 8"),
        ({"groups": 0}, r"positive"),
        ({"out_channels": 12, "groups": 8}, r"use a divisor of 4"),
        ({"identity": True, "stride": 2}, r"identity=True"),
        ({"identity": True, "padding": 0}, r"padding=None"),
        ({"padding_mode": "mirror"}, r"reflect"),
        ({"dim": 4}, r"1, 2 or 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RepVGGBlock(**{"in_channels": 8, "out_channels": 8, **arguments})  # type: ignore[arg-type]
