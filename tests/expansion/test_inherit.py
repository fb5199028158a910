"""Folding, balancing and restating norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.blocks import ACBlock, RefConv
from reptool.errors import InputError
from reptool.expansion.inherit import (
    balance,
    collapsed,
    difference,
    folded,
    inherit_norm,
    norm_scale,
    restate,
)
from reptool.testing import randomize


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_and_inherited_norm_compute_the_same(affine: bool, bias: bool) -> None:
    conv, norm = nn.Conv2d(4, 6, 3, bias=bias), nn.BatchNorm2d(6, eps=1e-2, momentum=0.3, affine=affine)
    randomize(norm)
    norm.eval().double()
    conv.double()
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    weight, shift = folded(conv, norm)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, shift), norm(conv(x)))
    target = nn.BatchNorm2d(6).eval().double()
    inherit_norm(target, conv, norm)
    torch.testing.assert_close(target(nn.functional.conv2d(x, conv.weight)), norm(conv(x)))
    assert (target.eps, target.momentum) == (1e-2, 0.3)
    inherit_norm(target, conv, None)
    torch.testing.assert_close(target(nn.functional.conv2d(x, conv.weight)), conv(x))


def test_a_norm_without_statistics_cannot_inherit() -> None:
    with pytest.raises(InputError, match="keep no statistics"):
        inherit_norm(nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 3), None)


def test_balance_undoes_the_other_branches_and_revives_dead_channels() -> None:
    conv, norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
    randomize(norm)
    block = ACBlock(4, 8)
    randomize(block)
    main = block.branches["square"]
    nn.init.zeros_(main.bn.weight)  # type: ignore[arg-type, union-attr]
    assert difference(block, conv, norm) > 1e-2
    balance(block, main.conv, main.bn, conv, norm)  # type: ignore[arg-type, union-attr]
    assert difference(block, conv, norm) < 1e-5
    weight, bias = collapsed(block)
    torch.testing.assert_close((weight, bias), folded(conv, norm), rtol=1e-4, atol=1e-5)


def test_what_does_not_collapse_to_one_convolution() -> None:
    with pytest.raises(InputError, match="collapses to 2 convolutions"):
        collapsed(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    with pytest.raises(InputError, match="kernel of shape"):
        balance(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), None)


def test_restate_keeps_the_function() -> None:
    norm = nn.BatchNorm2d(5)
    randomize(norm)
    norm.double().eval()
    x = torch.randn(3, 5, 4, 4, dtype=torch.float64)
    before = norm(x)
    restate(norm, torch.randn(5).double(), torch.rand(5).double() + 0.5)
    torch.testing.assert_close(norm(x), before)
    assert norm_scale(norm).shape == (5,)


def test_difference_sees_kernels_and_shapes() -> None:
    conv = nn.Conv2d(4, 4, 3, groups=2)
    assert difference(RefConv.from_conv(conv, init="zeros"), conv, None) < 1e-6
    assert difference(RefConv.from_conv(conv), conv, None) > 1e-2
    assert difference(nn.Conv2d(4, 4, 1), conv, None) == float("inf")
