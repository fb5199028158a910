"""`assert_same_conversion` passes conversions that are one, and tells what differs in others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.testing import assert_same_conversion, randomize

X = torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(0))


def block() -> nn.Sequential:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2)]
    return randomize(nn.Sequential(*layers), 0).eval()  # type: ignore[return-value]


def theirs(model: Any) -> nn.Sequential:
    """What an author's own code makes."""
    fuse: Any = torch.nn.utils.fuse_conv_bn_eval
    return nn.Sequential(fuse(model[0], model[1]), nn.ReLU(), fuse(model[3], model[4]))


def test_the_same_conversion_passes() -> None:
    model = block()
    assert_same_conversion(reptool.deploy(model), theirs(model), X)
    assert_same_conversion(reptool.deploy(model), theirs(model))


def test_what_differs_is_told() -> None:
    model = block()
    ours, other = reptool.deploy(model), theirs(model)
    wrong = copy.deepcopy(other)
    with torch.no_grad():
        wrong[0].weight.mul_(1.01)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="largest error"):
        assert_same_conversion(ours, wrong, X)
    with pytest.raises(AssertionError, match=r"ours runs more often than theirs: \{'batch norm'"):
        assert_same_conversion(model, other, X)


def test_layers_that_do_the_same_by_other_weights_are_told_apart() -> None:
    model = block()
    ours, other = reptool.deploy(model), theirs(model)
    with torch.no_grad():  # a factor that the ReLU lets through
        other[0].weight.mul_(2.0)  # type: ignore[operator]
        other[0].bias.mul_(2.0)  # type: ignore[operator]
        other[2].weight.div_(2.0)  # type: ignore[operator]
    with pytest.raises(AssertionError, match=r"no layer of ours has the weight \(4, 3, 3, 3\) and bias of their '0'"):
        assert_same_conversion(ours, other, X)
    assert_same_conversion(ours, other, X, weights=False)
