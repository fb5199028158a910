"""A factor moved between two layers changes nothing of what they compute, and makes their ranges alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.errors import InputError
from reptool.fusions.nonlinear.equalization import equalized, equalizing_scale, read_by_channel


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("between", [nn.ReLU(), nn.LeakyReLU(0.2), nn.MaxPool2d(2)])
@torch.no_grad()
def test_the_same_is_computed(groups: int, between: nn.Module) -> None:
    torch.manual_seed(groups)
    first, second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 12, 3, groups=groups, padding=1, bias=False)
    first, second = first.double(), second.double()
    first.weight.data *= 10.0 ** torch.arange(-3, 3, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = torch.randn(2, 3, 12, 11, dtype=torch.float64)
    wanted = second(between(first(x)))
    scale = equalizing_scale(first.weight, second.weight, groups)
    weight, bias, last = equalized(first.weight, first.bias, second.weight, scale, groups)
    found = nn.functional.conv2d(between(nn.functional.conv2d(x, weight, bias)), last, None, 1, 1, 1, groups)
    assert float((found - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())
    written, read = weight.abs().flatten(1).amax(1), read_by_channel(last, groups)
    ratio = torch.maximum(written / read, read / written)
    assert float(ratio.max()) <= 2.0 + 1e-9, "a power of two is off by the square root of two at most, squared"
    assert bool((torch.log2(scale) == torch.log2(scale).round()).all())


def test_linear_layers_and_no_bias() -> None:
    first, second = torch.tensor([[64.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0]])
    scale = equalizing_scale(first, second)
    assert scale.tolist() == [0.125, 1.0]
    weight, bias, last = equalized(first, None, second, scale)
    assert bias is None
    assert weight.tolist() == [[8.0, 0.0], [1.0, 1.0]]
    assert last.tolist() == [[8.0, 1.0]]


def test_channels_of_zeros_and_what_does_not_fit_keep_one() -> None:
    first = torch.tensor([[0.0], [1.0], [1e-30], [1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0, 1e30, 1.0]], dtype=torch.float64)
    assert equalizing_scale(first, second).tolist() == [1.0] * 4


@pytest.mark.parametrize("scale", [[1.0, 0.0], [-1.0, 1.0], [float("inf"), 1.0], [float("nan"), 1.0]])
def test_other_factors_are_refused(scale: list[float]) -> None:
    with pytest.raises(InputError, match="above zero"):
        equalized(torch.ones(2, 1), None, torch.ones(1, 2), torch.tensor(scale))


def test_nothing_that_is_given_is_modified() -> None:
    first, second = torch.full((2, 1), 4.0), torch.ones(1, 2)
    equalized(first, torch.ones(2), second, torch.tensor([2.0, 0.5]))
    assert first.tolist() == [[4.0], [4.0]]
    assert second.tolist() == [[1.0, 1.0]]
