"""Convolution or linear layer and the norm behind it, against torch's own modules."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import bn_scale_shift, fuse_conv_bn, scale_rows
from reptool.testing import bn_statistics, conv_modules


@given(st.data(), conv_modules())
def test_fused_layer_is_layer_then_norm(data: st.DataObject, conv: Any) -> None:
    conv.requires_grad_(False)
    statistics = data.draw(bn_statistics(conv.out_channels))
    inputs = [conv.weight.detach(), conv.bias, *statistics]
    kept = [t.clone() if isinstance(t, Tensor) else t for t in inputs]
    weight, bias = fuse_conv_bn(*inputs)
    spatial = conv.weight.dim() - 2
    x = torch.randn(2, conv.in_channels, *(9, 8, 7)[:spatial], dtype=torch.float64)
    y = conv(x).detach()
    mean, variance, gamma, beta, eps = statistics
    wanted = F.batch_norm(y, mean, variance, gamma, beta, False, 0.0, eps)
    fused = conv_like(conv, weight, bias)(x)
    assert (fused - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))
    assert_same(inputs, kept)


def conv_like(conv: Any, weight: Tensor, bias: Tensor | None) -> Any:
    out = type(conv)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
    ).to(weight.dtype)
    out.weight, out.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)
    return out.requires_grad_(False)


def assert_same(now: list[Any], before: list[Any]) -> None:
    for a, b in zip(now, before, strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_cast_once(dtype: torch.dtype, bias: bool) -> None:
    linear = nn.Linear(5, 4, bias=bias).to(dtype)
    mean, variance = torch.randn(4), torch.rand(4) + 0.5
    weight, shift = fuse_conv_bn(linear.weight, linear.bias, mean, variance)
    assert weight.dtype == shift.dtype == dtype
    double = linear.bias.double() if bias else None
    exact, exact_shift = fuse_conv_bn(linear.weight.double(), double, mean, variance)
    assert torch.equal(weight, exact.to(dtype))
    assert torch.equal(shift, exact_shift.to(dtype))
    x = torch.randn(3, 5, dtype=torch.float64)
    wanted = F.batch_norm(F.linear(x, linear.weight.double(), double), mean.double(), variance.double())
    torch.testing.assert_close(F.linear(x, exact, exact_shift), wanted, rtol=1e-10, atol=1e-10)


def test_statistics_of_other_channels_are_an_error() -> None:
    with pytest.raises(InputError, match="do not fit 4 output channels"):
        fuse_conv_bn(torch.ones(4, 2), None, torch.ones(3), torch.ones(3))
    with pytest.raises(InputError, match="do not fit 4 output channels"):
        fuse_conv_bn(torch.ones(4, 2), None, torch.ones(4), torch.ones(1))


def test_scale_and_shift_are_double_and_those_of_the_norm() -> None:
    norm = nn.BatchNorm1d(6, eps=0.1).eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 1e-12, 3.0, -1e-3]))
        norm.running_var.copy_(torch.tensor([0.0, 1.0, 1e-12, 1e8, 2.0, 3.0]))
        norm.running_mean.normal_()
        scale, shift = bn_scale_shift(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
        assert scale.dtype == shift.dtype == torch.float64
        x = torch.randn(5, 6, dtype=torch.float64)
        torch.testing.assert_close(x * scale + shift, norm.double()(x), rtol=1e-12, atol=1e-12)


def test_scale_rows_gives_nothing_back_that_it_was_given() -> None:
    weight, shift, scale = torch.ones(2, 3), torch.ones(2), torch.full((2,), 2.0)
    scaled, bias = scale_rows(weight, None, scale, shift)
    assert bias is not None
    bias.zero_()
    scaled.zero_()
    assert torch.equal(shift, torch.ones(2))
    assert torch.equal(weight, torch.ones(2, 3))
    assert scale_rows(weight, None, scale, None)[1] is None
    unshifted = scale_rows(weight, torch.ones(2), scale, None)[1]
    assert unshifted is not None
    assert unshifted.tolist() == [2.0, 2.0]
