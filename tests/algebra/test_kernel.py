"""Channel structures and axes against dense brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reptool.algebra.kernel import Axis, Border, Channels, Kernel, identity, rewindow
from reptool.testing import apply_kernel, axes, channel_structures, dense_weight, kernels


def mask(channels: Channels) -> Tensor:
    """[O, C]: which inputs each output may read."""
    out = torch.zeros(channels.out_channels, channels.in_channels, dtype=torch.bool)
    for row, (lo, hi) in enumerate(zip(channels.lo, channels.hi, strict=True)):
        out[row, lo:hi] = True
    return out


@st.composite
def structure_pairs(draw: st.DrawFn) -> tuple[Channels, Channels]:
    first = draw(channel_structures())
    return draw(channel_structures(in_channels=first.out_channels)), first


@st.composite
def siblings(draw: st.DrawFn) -> tuple[Channels, Channels]:
    first = draw(channel_structures())
    return first, draw(channel_structures(first.in_channels, first.out_channels))


# --- Axis
@given(axes(), st.integers(1, 14))
def test_out_size_is_that_of_a_convolution(axis: Axis, size: int) -> None:
    x = F.pad(torch.zeros(1, 1, size + 20), (0, 0))[..., : max(size + axis.before + axis.after, 0)]
    if x.shape[-1] <= axis.span:
        assert axis.out_size(size) == 0
        return
    y = F.conv1d(x, torch.zeros(1, 1, axis.kernel_size), stride=axis.stride, dilation=axis.dilation)
    assert axis.out_size(size) == y.shape[-1]


def test_a_single_tap_has_no_dilation() -> None:
    assert Axis(1, dilation=3) == Axis()
    assert Axis(2, dilation=3).span == 3


@pytest.mark.parametrize("border", list(Border))
def test_a_border_that_is_never_read_is_forgotten_unless_unknown(border: Border) -> None:
    unread = Axis(3, before=0, after=-1, border=border)
    assert unread.border is (border if border is Border.UNKNOWN else Border.ZEROS)
    assert Axis(3, before=0, after=1, border=border).border is border
    assert not unread.reads_outside


def test_only_an_axis_that_does_nothing_is_pointwise() -> None:
    assert Axis().is_pointwise
    for other in (
        Axis(2),
        Axis(stride=2),
        Axis(before=1),
        Axis(after=-1),
        Axis(before=1, after=-1),
        Axis(border=Border.UNKNOWN),
    ):
        assert not other.is_pointwise


# --- Channels
@given(channel_structures())
def test_groups_is_the_most_that_holds_the_structure(channels: Channels) -> None:
    reads = mask(channels)

    def holds(groups: int) -> bool:
        return not (reads & ~mask(Channels.grouped(channels.in_channels, channels.out_channels, groups))).any()

    common = [g for g in range(1, 20) if channels.in_channels % g == 0 and channels.out_channels % g == 0]
    assert channels.groups == max(g for g in common if holds(g))


@given(channel_structures())
def test_a_row_is_stored_where_its_interval_lies(channels: Channels) -> None:
    assert (channels.offset >= 0).all()
    assert (channels.offset + channels.width <= channels.in_channels).all()
    assert (channels.offset <= channels.lo).all()
    assert (channels.offset + channels.width >= channels.hi).all()
    assert channels.width == mask(channels).sum(1).max()


@given(channel_structures())
def test_diagonal_means_each_output_reads_its_own_input(channels: Channels) -> None:
    square = channels.in_channels == channels.out_channels
    assert channels.is_diagonal == (square and torch.equal(mask(channels), torch.eye(channels.in_channels).bool()))


@given(siblings())
def test_hull_holds_both_and_nothing_beyond_their_ends(pair: tuple[Channels, Channels]) -> None:
    a, b = pair
    hull = mask(a.hull(b))
    both = mask(a) | mask(b)
    assert not (both & ~hull).any()
    for row, wanted in zip(hull, both, strict=True):
        (inside,), (wanted_inside,) = row.nonzero(as_tuple=True), wanted.nonzero(as_tuple=True)
        assert (inside.min(), inside.max()) == (wanted_inside.min(), wanted_inside.max())


@given(structure_pairs())
def test_after_is_the_hull_of_what_is_read_through_the_first(pair: tuple[Channels, Channels]) -> None:
    second, first = pair
    reached = (mask(second).double() @ mask(first).double()) > 0
    after = second.after(first)
    assert after.in_channels == first.in_channels
    assert after.out_channels == second.out_channels
    for row, lo, hi in zip(reached, after.lo, after.hi, strict=True):
        (inside,) = row.nonzero(as_tuple=True)
        assert (lo, hi) == (inside.min(), inside.max() + 1)


@given(siblings(), st.integers(0, 99))
def test_rewindow_moves_values_and_keeps_the_meaning(pair: tuple[Channels, Channels], seed: int) -> None:
    narrow, other = pair
    wide = narrow.hull(other)
    weight = torch.randn(narrow.out_channels, narrow.width, 2, generator=torch.Generator().manual_seed(seed))
    column = torch.as_tensor(narrow.offset[:, None] + np.arange(narrow.width))
    inside = (column >= torch.as_tensor(narrow.lo)[:, None]) & (column < torch.as_tensor(narrow.hi)[:, None])
    weight = weight * inside[..., None]
    before = Kernel(narrow, (Axis(2),), weight)
    moved = rewindow(weight, narrow, wide)
    assert moved.shape == (wide.out_channels, wide.width, 2)
    assert torch.equal(dense_weight(before), dense_weight(Kernel(wide, (Axis(2),), moved)))
    assert torch.equal(before.windowed(wide).weight, moved)  # type: ignore[arg-type]


def test_structures_are_equal_by_what_they_read() -> None:
    assert Channels.grouped(4, 4, 4) == Channels.select(4, [0, 1, 2, 3])
    assert hash(Channels.grouped(4, 4, 4)) == hash(Channels.select(4, [0, 1, 2, 3]))
    assert Channels.grouped(4, 4, 4) != Channels.select(4, [1, 0, 2, 3])
    assert Channels.grouped(4, 4, 4) != Channels.select(5, [0, 1, 2, 3])
    assert Channels.grouped(4, 4) != "dense"
    assert "4->4" in repr(Channels.grouped(4, 4))


def test_a_depthwise_layer_is_never_expanded() -> None:
    channels = Channels.grouped(100_000, 100_000, 100_000)
    assert channels.width == 1
    assert channels.is_diagonal
    assert channels.after(channels).width == 1


# --- Kernel
@given(kernels(spatial=2))
def test_grouped_weight_is_what_a_convolution_takes(kernel: Kernel) -> None:
    assert kernel.channels is not None
    assert kernel.axes is not None
    weight = kernel.grouped_weight()
    groups = kernel.channels.groups
    assert weight.shape[1] * groups == kernel.in_channels
    unpadded = replace(kernel, axes=tuple(replace(a, before=0, after=0) for a in kernel.axes))
    x = torch.randn(2, kernel.channels.in_channels, 13, 12, dtype=torch.float64)
    stride, dilation = [a.stride for a in kernel.axes], [a.dilation for a in kernel.axes]
    y = F.conv2d(x, weight, kernel.bias, stride, 0, dilation, groups)
    torch.testing.assert_close(apply_kernel(unpadded, x), y, rtol=1e-12, atol=1e-12)


@given(st.integers(1, 5), st.integers(0, 3))
def test_identity_is_the_identity_on_any_channels_and_axes(channels: int, spatial: int) -> None:
    x = torch.randn(2, channels, *(4, 3, 2)[:spatial], dtype=torch.float64)
    loose = identity()
    assert loose.is_pointwise
    assert loose.is_channelwise
    assert torch.equal(apply_kernel(loose, x), x)
    fixed = loose.with_channels(channels).with_axes(spatial)
    assert fixed.in_channels == fixed.out_channels == channels
    assert torch.equal(apply_kernel(fixed, x), x)
    assert fixed.with_channels(99) is fixed
    assert fixed.with_axes(99) is fixed


def test_a_map_on_any_channels_keeps_bias_and_border_when_they_are_fixed() -> None:
    one = torch.ones(1, dtype=torch.float64)
    along = (Axis(2, before=1, after=1, border=Border.CONSTANT),)
    loose = Kernel(None, along, torch.randn(1, 1, 2, dtype=torch.float64), 3 * one, True, None, 5 * one)
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    assert torch.equal(apply_kernel(loose, x), apply_kernel(loose.with_channels(4), x))
    for fixed in (loose.with_channels(4), loose.shape_only().with_channels(4)):
        assert fixed.border_value is not None
        assert fixed.border_value.tolist() == [5.0] * 4


def test_a_shape_has_no_values() -> None:
    kernel = Kernel(Channels.grouped(2, 2), (Axis(),), torch.ones(2, 2, 1), torch.ones(2), True)
    shape = kernel.shape_only()
    assert shape.weight is None
    assert shape.bias is None
    assert shape.biased
    assert (shape.channels, shape.axes) == (kernel.channels, kernel.axes)
    assert not shape.is_channelwise
    assert shape.with_channels(7) is shape
    assert shape.windowed(Channels.grouped(2, 2)).channels == shape.channels
    assert replace(shape, channels=None).with_channels(3).in_channels == 3


def test_a_bias_is_zero_up_to_the_rounding_of_what_it_is_the_sum_of() -> None:
    two = torch.ones(2, dtype=torch.float64)
    kernel = Kernel(Channels.grouped(2, 2), (Axis(),), torch.ones(2, 2, 1), biased=False)
    assert kernel.bias_is_zero()
    assert kernel.shape_only().bias_is_zero()
    given_bias = replace(kernel, biased=True, bias=1e-13 * two)
    assert not given_bias.bias_is_zero()
    assert replace(given_bias, bias_terms=two).bias_is_zero()
    assert not replace(given_bias, bias_terms=1e-3 * two).bias_is_zero()
    assert replace(given_bias, bias=0 * two).bias_is_zero()
    assert not replace(given_bias, bias=0 * two).shape_only().bias_is_zero()
    assert replace(kernel, biased=True).bias_is_zero()
