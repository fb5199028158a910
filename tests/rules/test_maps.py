"""Maps in the terms of `torch.nn` mean what torch's own layers compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from reptool.errors import InputError
from reptool.rules.maps import Conv, Linear, Scale, as_kernel
from reptool.testing import apply_kernel, conv_modules


@given(conv_modules())
def test_a_conv_is_that_of_torch(conv: Any) -> None:
    made = Conv(
        conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode
    ).kernel()
    x = torch.randn(2, conv.in_channels, *[9, 8, 7][: conv.weight.dim() - 2], dtype=torch.float64)
    torch.testing.assert_close(apply_kernel(made, x), conv(x).detach())


def test_a_pair_of_paddings_for_each_axis_crops_and_pads() -> None:
    weight, x = torch.randn(2, 3, 2, 1, dtype=torch.float64), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    made = Conv(weight, padding=[(1, 0), (-1, 2)]).kernel()
    wanted = nn.functional.conv2d(nn.functional.pad(x, (-1, 2, 1, 0)), weight)
    torch.testing.assert_close(apply_kernel(made, x), wanted)


def test_linear_and_scale() -> None:
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(apply_kernel(Linear(weight, bias).kernel(), x), nn.functional.linear(x, weight, bias))
    image = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    made = Scale(weight[:, 0], bias).kernel()
    torch.testing.assert_close(apply_kernel(made, image), image * weight[:, 0].view(-1, 1, 1) + bias.view(-1, 1, 1))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Conv(torch.ones(2, 3)), "got shape"),
        (lambda: Conv(torch.ones(2, 3, 1, dtype=torch.int64)), "int64 tensor"),
        (lambda: Conv(torch.ones(2, 3, 1), groups=0), "groups=0"),
        (lambda: Conv(torch.ones(2, 3, 1), padding_mode="constant"), "padding_mode='constant'"),
        (lambda: Conv(torch.ones(2, 3, 1, 1), stride=(1, 2, 3)), "stride is"),
        (lambda: Conv(torch.ones(2, 3, 1, 1), padding=[(1, 2)]), "1 pairs of padding for 2 axes"),
        (lambda: Conv(torch.ones(2, 3, 1), stride=0), "positive"),
        (lambda: Conv(torch.ones(2, 3, 1), dilation=True), "dilation is True"),
        (lambda: Linear(torch.ones(2, 3, 1)), "got shape"),
        (lambda: Linear(torch.ones(2, 3), torch.ones(3)), "there are 2 outputs"),
        (lambda: Scale(torch.ones(2, 3)), "0 to 3 axes"),
        (lambda: Scale(torch.ones(2), axes=4), "0 to 3 axes"),
        (lambda: Scale(torch.ones(2), torch.ones(3)), "the shift has shape"),
    ],
)
def test_what_does_not_fit_says_so(made: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        as_kernel(made())


def test_a_kernel_in_float32_was_folded_in_float32() -> None:
    from dataclasses import replace

    kernel = Linear(torch.ones(2, 3)).kernel()
    assert as_kernel(kernel) is kernel
    assert kernel.weight is not None
    with pytest.raises(InputError, match="float64"):
        as_kernel(replace(kernel, weight=kernel.weight.float()))
