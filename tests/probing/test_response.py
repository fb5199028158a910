"""A kernel as a function, against torch's own layers and paddings."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.probing.response import applied, with_border

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
MODES = {
    Border.ZEROS: "constant",
    Border.REFLECT: "reflect",
    Border.REPLICATE: "replicate",
    Border.CIRCULAR: "circular",
}


@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(4, 6, 1), (4, 6, 2), (4, 4, 4)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from(list(MODES)),
    st.booleans(),
)
def test_it_computes_what_padding_and_convolution_compute(
    axes: int, channels: tuple[int, int, int], tap: int, stride: int, dilation: int, padding: tuple[int, int],
    border: Border, biased: bool,
) -> None:  # fmt: skip
    reads, writes, groups = channels
    weight = torch.randn(writes, reads // groups, *[tap] * axes, dtype=torch.float64)
    bias = torch.randn(writes, dtype=torch.float64) if biased else None
    axis = Axis(tap, stride, dilation, *padding, border=border)
    kernel = Kernel(Channels.grouped(reads, writes, groups), (axis,) * axes, weight, bias, biased)
    x = torch.randn(2, reads, *range(6, 6 + axes), dtype=torch.float64)
    padded = F.pad(x, padding * axes, MODES[border])
    made, bound = applied(kernel, x)
    assert made is not None
    assert bound is not None
    wanted = CONVS[axes](padded, weight, bias, stride, 0, dilation, groups)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    assert bool((bound >= made.abs() - 1e-12).all())


def test_a_border_that_an_image_is_too_small_for_is_not_defined() -> None:
    kernel = Kernel(Channels.grouped(1, 1, 1), (Axis(5, before=2, after=2),), torch.ones(1, 1, 5).double(), None, False)
    x = torch.ones(1, 1, 2, dtype=torch.float64)
    assert applied(kernel, x)[0] is not None
    assert applied(with_border(kernel, Border.REFLECT), x) == (None, None)
    assert applied(with_border(kernel, Border.REPLICATE), x)[0] is not None


def test_an_image_smaller_than_the_kernel_gives_nothing() -> None:
    kernel = Kernel(Channels.grouped(1, 2, 1), (Axis(3),), torch.ones(2, 1, 3).double(), None, False)
    made, bound = applied(kernel, torch.ones(1, 1, 2, dtype=torch.float64))
    assert made is not None
    assert made.shape == (1, 2, 0)
    assert bound is None


def test_a_linear_kernel_acts_on_the_last_axis() -> None:
    weight, bias = torch.randn(3, 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    kernel = Kernel(Channels.grouped(2, 3, 1), (), weight, bias, True)
    x = torch.randn(5, 2, dtype=torch.float64)
    made, _ = applied(kernel, x)
    assert made is not None
    torch.testing.assert_close(made, F.linear(x, weight, bias))


@pytest.mark.parametrize("mode", [Border.REFLECT, Border.CIRCULAR])
def test_a_border_goes_to_the_axes_that_read_outside(mode: Border) -> None:
    kernel = Kernel(Channels.grouped(1, 1, 1), (Axis(3, before=1, after=1), Axis(1)))
    assert [a.border for a in with_border(kernel, mode).axes or ()] == [mode, Border.ZEROS]
