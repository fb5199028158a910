"""DiverseBranchBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptool.blocks import DiverseBranchBlock, IdentityConv1x1
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE, TOLERANCE, batch_norm, conv_bn
from tests.blocks.options import Option, diverse_branch_options, randomize


def padded_norm(x: Tensor, module: Any, pad: int, training: bool) -> Tensor:
    """Batch norm, then a border filled with what the running statistics make of zero."""
    bn = module.bn if pad else module
    y = batch_norm(x, bn, training)
    if pad == 0:
        return y
    dim = x.dim() - 2
    border = batch_norm(torch.zeros(1, x.shape[1], *(1,) * dim, dtype=x.dtype), bn, training=False)
    filled = border.expand(x.shape[0], -1, *(n + 2 * pad for n in x.shape[2:])).clone()
    filled[(slice(None), slice(None), *(slice(pad, -pad),) * dim)] = y
    return filled


def moved(bn: nn.Module, x: Tensor) -> None:
    """Update the running statistics as the forward pass is about to do."""
    assert isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    axes = [0, *range(2, x.dim())]
    mean, var = x.mean(axes), x.var(axes, unbiased=True)
    bn.running_mean.lerp_(mean.detach(), 0.1)
    bn.running_var.lerp_(var.detach(), 0.1)


def formula(block: Any, plain: Any, x: Tensor, training: bool) -> Tensor:
    """Sum of the four branches, from their weights alone."""
    kernel, pad, stride, groups = plain.kernel_size[0], plain.padding[0], plain.stride[0], plain.groups
    dim = len(plain.kernel_size)
    conv = CONVOLVE[dim]

    def through(branch: Any) -> Tensor:
        point = branch.point
        weight = point.weight + point.identity if isinstance(point, IdentityConv1x1) else point.weight
        y = conv(x, weight, groups=groups)
        if training and pad:
            moved(branch.pad.bn, y)
        return padded_norm(y, branch.pad, pad, training)

    y = conv_bn(x, block.branches.origin, plain, training)
    sequence = block.branches.sequence
    inner = conv(through(sequence), sequence.conv.weight, stride=stride, groups=groups)
    y = y + batch_norm(inner, sequence.bn, training)
    if "point" in block.branches:
        y = y + conv_bn(x, block.branches.point, plain, training)
    if "average" in block.branches:
        average = block.branches.average
        inner = through(average) if hasattr(average, "point") else F.pad(x, [pad] * 2 * dim)
        filters = torch.full((inner.shape[1], 1, *(kernel,) * dim), 1 / kernel**dim, dtype=x.dtype)
        y = y + batch_norm(conv(inner, filters, stride=stride, groups=inner.shape[1]), average.bn, training)
    return block.activation(y)


@pytest.mark.parametrize("option", list(diverse_branch_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block = randomize(option.build(), seed=5).double().train(training)
    x = option.inputs()
    again = randomize(option.build().double(), seed=5).train(training)
    again.load_state_dict(block.state_dict())
    expected = formula(again, option.plain(), x, training)
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ({}, ["origin", "sequence", "point", "average"]),
        ({"groups": 2}, ["origin", "sequence", "point", "average"]),
        ({"groups": 8}, ["origin", "sequence", "average"]),
        ({"kernel_size": 1}, ["origin", "sequence"]),
    ],
)
def test_branches(arguments: dict[str, int], branches: list[str]) -> None:
    assert list(DiverseBranchBlock(8, 8, **arguments).branches) == branches


def test_kernel_sizes() -> None:
    branches = DiverseBranchBlock(8, 8, 5).branches
    assert branches["origin"].get_submodule("conv").kernel_size == (5, 5)
    assert branches["point"].get_submodule("conv").kernel_size == (1, 1)
    assert branches["sequence"].get_submodule("conv").kernel_size == (5, 5)
    assert branches["average"].get_submodule("pool").kernel_size == (5, 5)


def test_layers_of_the_pooling_branch() -> None:
    dense = DiverseBranchBlock(8, 8).branches["average"]
    depthwise = DiverseBranchBlock(8, 8, groups=8).branches["average"]
    assert [n for n, _ in dense.named_children()] == ["point", "pad", "pool", "bn"]
    assert [n for n, _ in depthwise.named_children()] == ["pool", "bn"]


@pytest.mark.parametrize(
    ("groups", "internal", "channels", "starts_as_identity"),
    [(1, None, 8, True), (2, 8, 8, True), (1, 12, 12, False), (8, None, 16, False), (8, 8, 8, True)],
)
def test_internal_channels(groups: int, internal: int | None, channels: int, starts_as_identity: bool) -> None:
    sequence = DiverseBranchBlock(8, 8, groups=groups, internal_channels=internal).branches["sequence"]
    point = sequence.get_submodule("point")
    assert sequence.get_submodule("conv").in_channels == channels
    assert isinstance(point, IdentityConv1x1) == starts_as_identity
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(point(x), x) == starts_as_identity


def test_single_init_starts_with_the_origin_alone() -> None:
    block = DiverseBranchBlock(8, 8, single_init=True).eval()
    x = torch.randn(1, 8, 6, 6)
    assert torch.equal(block(x), block.branches["origin"](x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 2}, "odd"),
        ({"kernel_size": (3, 5)}, "equal kernel sizes"),
        ({"padding": 2}, "at most K//2"),
        ({"kernel_size": 5, "padding": (1, 2)}, "equal kernel sizes"),
        ({"dim": 4}, "1, 2 or 3"),
        ({"groups": 3}, "divisor of 8"),
        ({"groups": 2, "internal_channels": 9}, "use 8"),
        ({"internal_channels": 0}, "positive multiple"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiverseBranchBlock(8, 8, **arguments)  # type: ignore[arg-type]
