"""Finding kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reptool.analysis import kernels, refocused
from reptool.blocks import RefConv
from reptool.blocks.parametrizations import refconv, weight_norm
from reptool.errors import InputError


def network() -> nn.Sequential:
    return nn.Sequential(
        RefConv(4, 4, 3, groups=4),
        refconv(nn.Conv1d(4, 6, 5)),
        nn.Conv2d(6, 4, 1),
        weight_norm(nn.Conv2d(4, 4, 3)),
        RefConv(4, 4, 3, transform=torch.neg),
    )


def test_all_kernels() -> None:
    net = network()
    found = kernels(net)
    assert list(found) == ["0", "1", "3", "4"]
    assert list(kernels(net, pointwise=True)) == ["0", "1", "2", "3", "4"]
    torch.testing.assert_close(found["0"], net[0].transformed_weight().detach())
    torch.testing.assert_close(found["1"], net[1].weight.detach())
    assert not found["4"].any()
    with pytest.raises(InputError, match="no convolution"):
        kernels(nn.Conv2d(3, 3, 1))


def test_refocused_kernels() -> None:
    net = network()
    found = refocused(net)
    assert list(found) == ["0", "1", "4"]
    assert torch.equal(found["0"].basis, net[0].weight)
    torch.testing.assert_close(
        found["0"].increment, net[0].convmap(net[0].weight.view(1, 4, 3, 3)).view(4, 1, 3, 3).detach()
    )
    assert found["1"].map_weight is not None
    assert (found["1"].map_weight.shape, found["1"].map_groups) == ((24, 1, 3), 24)
    assert found["4"].map_weight is None
    with pytest.raises(InputError, match="nothing in this Linear"):
        refocused(nn.Linear(2, 2))


def test_results_are_copies() -> None:
    layer = RefConv(4, 4, 3, init="zeros")
    before: Tensor = layer.weight.clone()
    refocused(layer)[""].basis.zero_()
    kernels(layer)[""].zero_()
    assert torch.equal(layer.weight, before)
