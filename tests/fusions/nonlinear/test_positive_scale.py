"""``s f(W x + b) = f((s W) x + s b)`` for what is positively homogeneous and no factor below zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reptool.errors import InputError
from reptool.fusions import scale_before_activation
from reptool.testing import conv_modules

FUNCTIONS = [torch.relu, torch.abs, lambda x: nn.functional.leaky_relu(x, 0.2)]


@given(conv_modules(), st.sampled_from(FUNCTIONS), st.integers(0, 99))
def test_the_scale_moves_in_front(conv: nn.Conv2d, function: object, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    axes = conv.weight.dim() - 2
    x = torch.randn(2, conv.in_channels, *(9, 8, 7)[:axes], generator=generator, dtype=torch.float64)
    scale = torch.rand(conv.out_channels, generator=generator, dtype=torch.float64)
    scale[0] = 0.0
    y: Tensor = function(conv(x))  # type: ignore[operator]
    wanted = y * scale.reshape(-1, *[1] * axes)
    before = conv.weight.detach().clone()
    weight, bias = scale_before_activation(conv.weight.detach(), conv.bias, scale)
    assert torch.equal(conv.weight, before)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.bias.copy_(bias)  # type: ignore[union-attr]
    torch.testing.assert_close(function(conv(x)), wanted, rtol=1e-10, atol=1e-12)  # type: ignore[operator]


def test_a_factor_below_zero_is_an_error() -> None:
    with pytest.raises(InputError, match="a scale of -1 does not move"):
        scale_before_activation(torch.ones(2, 1), None, torch.tensor([1.0, -1.0]))
