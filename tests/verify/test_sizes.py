"""Sizes that show every tap at every border."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.verify.sizes import BATCH, SMALL, made_up, of_one_position, sizes_of


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(-2, 6), st.integers(-2, 6))
def test_every_tap_lies_in_the_image_and_wherever_else_it_can(
    taps: int, stride: int, dilation: int, before: int, after: int
) -> None:
    axis = Axis(taps, stride, dilation, before, after)
    kernel = Kernel(Channels.grouped(1, 1), (axis,))
    smallest, roomy = sizes_of(kernel, [])

    def seen(sizes: list[tuple[int, ...]], tap: int) -> set[str]:
        out = set()
        for (size,) in sizes:
            for position in range(axis.out_size(size)):
                at = stride * position + axis.dilation * tap - before
                out.add("before" if at < 0 else "behind" if at >= size else "inside")
        return out

    large = [(n,) for n in range(40, 40 + stride)]
    for tap in range(taps):
        assert seen(smallest, tap) == seen(roomy, tap) == seen(large, tap)
    assert all("inside" in seen(smallest[:1], tap) for tap in range(taps))
    assert len(smallest) == stride
    assert all(axis.out_size(n) >= 2 for (n,) in smallest)
    assert min(roomy) >= min(smallest)


def test_axes_have_different_sizes() -> None:
    kernel = Kernel(Channels.grouped(1, 1), (Axis(3, 1, 1, 1, 1), Axis(3, 1, 1, 1, 1)))
    assert next(sizes_of(kernel, [])) == [(3, 4)]
    assert next(sizes_of(kernel, [], 1)) == [(3, 4)]
    strided = Kernel(Channels.grouped(1, 1), (Axis(3, 2, 1, 1, 1), Axis(3, 2, 1, 1, 1)))
    assert next(sizes_of(strided, [])) == [(4, 6), (5, 7)]
    assert next(sizes_of(strided, [], 1)) == [(4, 6)]
    assert of_one_position(strided) == (1, 1)


@pytest.mark.parametrize("rank", [None, 2, 4])
def test_values_are_never_small(rank: int | None) -> None:
    linear = Kernel(Channels.grouped(5, 2), (), torch.zeros(2, 5))
    x = made_up(linear, (), rank, torch.Generator().manual_seed(0))
    assert x.shape == ((BATCH, 5) if rank != 4 else (BATCH, 3, 4, 5))
    assert x.dtype is torch.float64
    assert bool(((x.abs() >= 0.5) & (x.abs() <= 1)).all())
    assert bool((x > 0).any())
    assert bool((x < 0).any())


def test_large_kernels_are_run_on_one_image() -> None:
    axes = (Axis(3), Axis(3))
    for width, batch in ((4, BATCH), (SMALL // 9, 1)):
        kernel = Kernel(Channels.grouped(width, 1), axes, torch.zeros(1, width, 3, 3))
        assert len(made_up(kernel, (3, 4), None, torch.Generator())) == batch


@pytest.mark.parametrize(
    "along", [(4, 2, 1, 0, 1), (8, 2, 3, 0, 1), (13, 2, 6, 1, 1), (5, 3, 4, 0, 2), (7, 4, 0, 3, 1)]
)
def test_every_tap_of_a_transposed_convolution_shows(along: tuple[int, int, int, int, int]) -> None:
    size, stride, padding, extra, dilation = along
    key = tuple((v,) for v in along)
    kernel = Kernel(Channels.grouped(1, 1), (Axis(size, border=Border.UNKNOWN),), transposed=key)
    ((n,),) = next(sizes_of(kernel, []))
    weight = torch.ones(1, 1, size, dtype=torch.float64, requires_grad=True)
    out = torch.nn.functional.conv_transpose1d(
        torch.ones(1, 1, n, dtype=torch.float64), weight, None, stride, padding, extra, 1, dilation
    )
    (shown,) = torch.autograd.grad(out.sum(), weight)
    assert bool((shown >= 1).all())
    assert n >= 3
