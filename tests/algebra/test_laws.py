"""Every law against brute force in float64, every refusal provoked, and shown to be needed."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reptool.algebra.compose import compose
from reptool.algebra.kernel import Axis, Border, Channels, Kernel, identity
from reptool.algebra.laws import add, concat, embed
from reptool.refusal import Code, Refusal
from reptool.testing import (
    apply_kernel,
    axes,
    bn_statistics,
    channel_structures,
    composable_kernels,
    dense_weight,
    kernels,
    parallel_kernels,
)

SPAN = 40
"""Images larger than this are never needed: no kernel of the strategies spans so many positions."""


# --- helpers
def fits(axis: Axis, size: int) -> bool:
    """Whether an image of `size` has an output and is large enough to be extended by the border mode."""
    return axis.out_size(size) >= 1 and (axis.border is not Border.REFLECT or max(axis.before, axis.after) < size)


def sizes_for(along: Sequence[Sequence[Axis]], extra: Sequence[int]) -> list[int]:
    """Per axis the `extra`-th smallest image that a chain of axes takes."""
    out = []
    for chain, skip in zip(along, extra, strict=False):
        taken = []
        for size in range(1, SPAN + 40):
            now, ok = size, True
            for axis in chain:
                ok = ok and fits(axis, now)
                now = axis.out_size(now)
            if ok:
                taken.append(size)
        assume(taken)
        out.append(taken[min(skip, len(taken) - 1)])
    return out


def image(kernel: Kernel, sizes: Sequence[int], channels: int | None = None, seed: int = 0) -> Tensor:
    count = kernel.in_channels or channels
    assert count is not None
    generator = torch.Generator().manual_seed(seed)
    shape = (2, count, *sizes) if sizes else (3, count)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(given_: Tensor, wanted: Tensor) -> None:
    """Equal shapes, and errors below 1e-10 of what the values are the size of."""
    assert given_.shape == wanted.shape
    assert (given_ - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))


def law(result: Kernel | Refusal) -> Kernel:
    assert isinstance(result, Kernel), str(result)
    return result


def refused(result: Kernel | Refusal, code: Code) -> None:
    assert isinstance(result, Refusal), f"{code.value} was not refused: {result}"
    assert result.code is code, str(result)
    assert result.sentence


def same_geometry(shape: Kernel | Refusal, kernel: Kernel) -> None:
    """The shape that planning works with is that of the kernel."""
    shape = law(shape)
    assert shape.axes == kernel.axes
    assert shape.channels == kernel.channels
    assert shape.weight is None
    assert shape.biased or kernel.bias is None


def conv(
    *along: Axis, reads: int = 2, writes: int = 2, groups: int = 1, bias: float | None = None, seed: int = 1
) -> Kernel:
    channels = Channels.grouped(reads, writes, groups)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(
        writes, channels.width, *[a.kernel_size for a in along], generator=generator, dtype=torch.float64
    )
    shift = None if bias is None else torch.full((writes,), bias, dtype=torch.float64)
    value = None
    if any(a.border is Border.CONSTANT for a in along):
        value = torch.full((reads,), 0.5, dtype=torch.float64)
    return Kernel(channels, along, weight, shift, bias is not None, None, value)


extras = st.lists(st.integers(0, 7), min_size=3, max_size=3)


# --- add
@given(parallel_kernels(), extras)
def test_add_is_the_sum_of_the_branches(parts: list[Kernel], extra: list[int]) -> None:
    summed = law(add(parts))
    channels = next((k.in_channels for k in parts if k.in_channels), 3)
    chains = [[a] for k in [*parts, summed] for a in k.axes or ()]
    count = len(parts[0].axes or ())
    sizes = [max(sizes_for(chains[i::count], extra[i : i + 1] * len(chains))) for i in range(count)] if count else []
    assume(all(fits(a, n) for k in parts for a, n in zip(k.axes or (), sizes, strict=True)))
    x = image(parts[0], sizes, channels)
    close(apply_kernel(summed, x), sum((apply_kernel(k, x) for k in parts), torch.zeros(())))
    same_geometry(add([k.shape_only() for k in parts]), summed)
    same_geometry(add([parts[0], *[k.shape_only() for k in parts[1:]]]), summed)


@given(parallel_kernels(), st.randoms(use_true_random=False))
def test_add_does_not_depend_on_order_or_grouping(parts: list[Kernel], random: Random) -> None:
    summed = law(add(parts))
    shuffled = list(parts)
    random.shuffle(shuffled)
    other = law(add(shuffled))
    nested = law(add([law(add(parts[:1])), law(add(parts[1:]))]))
    for again in (other, nested):
        assert again.axes == summed.axes
        assert again.channels == summed.channels
        assert summed.weight is not None
        assert again.weight is not None
        assert (again.weight - summed.weight).abs().max() < 1e-12


def test_add_keeps_the_gcd_of_the_groups() -> None:
    four = conv(Axis(3, before=1, after=1), reads=8, writes=8, groups=4)
    six = conv(Axis(1), reads=8, writes=8, groups=2)
    depthwise = conv(Axis(1), reads=8, writes=8, groups=8)
    summed = law(add([four, six]))
    assert summed.channels is not None
    assert summed.channels.groups == 2
    assert law(add([four, depthwise])).channels == four.channels
    assert law(add([four, identity()])).channels == four.channels


def test_add_of_dilations_lies_on_the_lattice_of_both() -> None:
    summed = law(add([conv(Axis(3, dilation=2, before=2, after=2)), conv(Axis(3, before=1, after=1))]))
    assert summed.axes == (Axis(5, before=2, after=2),)
    wide = law(add([conv(Axis(2, dilation=4, before=4)), conv(Axis(2, dilation=4, before=0, after=4))]))
    assert wide.axes == (Axis(3, dilation=4, before=4, after=4),)
    cropped = law(add([conv(Axis(3)), conv(Axis(1, before=-1, after=-1))]))
    assert cropped.axes == (Axis(3),)


def test_add_on_a_depthwise_layer_stays_depthwise() -> None:
    wide = conv(Axis(3, before=1, after=1), reads=5000, writes=5000, groups=5000)
    summed = law(add([wide, identity()]))
    assert summed.weight is not None
    assert summed.weight.shape == (5000, 1, 3)


def test_border_modes_matter_only_where_something_is_read_outside() -> None:
    reflect = conv(Axis(3, before=1, after=1, border=Border.REFLECT))
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    summed = law(add([reflect, conv(Axis(1))]))
    close(apply_kernel(summed, x), apply_kernel(reflect, x) + apply_kernel(conv(Axis(1)), x))


def test_transposed_kernels_of_one_geometry_add() -> None:
    geometry = (1, (2,), (1,))
    f, g = (replace(conv(Axis(3), seed=s, bias=0.5), transposed=geometry) for s in (1, 2))
    summed = law(add([f, g]))
    assert summed.transposed == geometry
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    close(transposed(summed, x), transposed(f, x) + transposed(g, x))
    refused(add([f, replace(g, transposed=(2, (2,), (1,)))]), Code.BORDER_UNKNOWN)
    refused(add([f, conv(Axis(3))]), Code.BORDER_UNKNOWN)


def transposed(kernel: Kernel, x: Tensor) -> Tensor:
    return F.conv_transpose1d(x, dense_weight(kernel).transpose(0, 1), kernel.bias, 2, 1)


# --- refusals of add and concat
@pytest.mark.parametrize("merge", [add, concat])
def test_parallel_refusals(merge: Callable[[Sequence[Kernel]], Kernel | Refusal]) -> None:
    three = conv(Axis(3, before=1, after=1))
    constant = conv(Axis(3, before=1, after=1, border=Border.CONSTANT))
    cases = [
        (Code.CHANNELS, [three, conv(Axis(1), reads=3)]),
        (Code.LAYOUT, [three, conv(Axis(3, before=1, after=1), Axis())]),
        (Code.LAYOUT, [three, conv()]),
        (Code.STRIDE, [three, conv(Axis(3, before=1, after=1, stride=2))]),
        (Code.EXTENT, [three, conv(Axis(3))]),
        (Code.EXTENT, [three, conv(Axis(2))]),
        (Code.BORDER_MODE, [three, conv(Axis(3, before=1, after=1, border=Border.REFLECT))]),
        (Code.BORDER_MODE, [constant, replace(constant, border_value=torch.ones(2).double())]),
        (Code.CONSTANT_VALUE, [constant, replace(constant, border_value=None)]),
        (Code.BORDER_UNKNOWN, [three, conv(Axis(3, before=1, after=1, border=Border.UNKNOWN))]),
        (Code.BORDER_UNKNOWN, [three, replace(three, transposed=(1,))]),
    ]
    for code, parts in cases:
        refused(merge(parts), code)
        refused(merge([k.shape_only() for k in parts]), code)


def test_sums_that_would_broadcast_over_channels_are_refused() -> None:
    refused(add([conv(Axis(1), writes=1), conv(Axis(1), writes=2)]), Code.CHANNELS)
    refused(add([conv(Axis(1), reads=2, writes=1), identity()]), Code.CHANNELS)


def test_concat_needs_to_know_how_many_channels_a_part_has() -> None:
    refused(concat([identity(), identity()]), Code.CHANNELS)


def test_unequal_extents_are_refused_because_a_map_of_size_one_broadcasts() -> None:
    pool = replace(conv(Axis(2, stride=2), groups=2), weight=torch.full((2, 1, 2), 0.5, dtype=torch.float64))
    three = conv(Axis(3, stride=2, before=1, after=1))
    refused(add([pool, three]), Code.EXTENT)
    agreeing = replace(pool, axes=(replace(pool.axes[0], before=0, after=1),))  # type: ignore[index]
    merged = law(add([agreeing, three]))  # what a merge with the larger extent would give
    silent = []
    for size in range(2, 9):
        x = torch.randn(2, 2, size, dtype=torch.float64)
        a, b = apply_kernel(pool, x), apply_kernel(three, x)
        if a.shape == b.shape:
            close(apply_kernel(merged, x), a + b)
        elif a.shape[-1] == 1:
            silent.append(size)
            assert (apply_kernel(merged, x) - (a + b)).abs().max() > 0.01
    assert silent == [3]


def test_different_borders_are_refused_because_the_sum_is_wrong_there() -> None:
    zeros, reflect = (conv(Axis(3, before=1, after=1, border=b)) for b in (Border.ZEROS, Border.REFLECT))
    refused(add([zeros, reflect]), Code.BORDER_MODE)
    x = torch.randn(1, 2, 7, dtype=torch.float64)
    wanted = apply_kernel(zeros, x) + apply_kernel(reflect, x)
    naive = apply_kernel(law(add([zeros, zeros])), x)
    close(naive[..., 1:-1], wanted[..., 1:-1])
    assert (naive - wanted).abs().max() > 0.1


# --- concat
@given(parallel_kernels(same_outputs=False), extras)
def test_concat_is_the_concatenation_of_the_branches(parts: list[Kernel], extra: list[int]) -> None:
    joined = law(concat(parts))
    count = len(parts[0].axes or ())
    sizes = [
        max(sizes_for([[k.axes[i]] for k in parts if k.axes], extra[i : i + 1] * len(parts))) for i in range(count)
    ]
    x = image(parts[0], sizes)
    close(apply_kernel(joined, x), torch.cat([apply_kernel(k, x) for k in parts], 1))
    same_geometry(concat([k.shape_only() for k in parts]), joined)


def test_consecutive_slices_stay_grouped_and_swapped_ones_do_not() -> None:
    def slice_of(lo: int, hi: int, writes: int = 2) -> Kernel:
        channels = Channels(4, np.array([lo] * writes), np.array([hi] * writes))
        return Kernel(channels, (Axis(3),), torch.randn(writes, hi - lo, 3, dtype=torch.float64))

    def groups(*parts: Kernel) -> int:
        joined = law(concat(parts))
        assert joined.channels is not None
        return joined.channels.groups

    assert groups(slice_of(0, 2), slice_of(2, 4)) == 2
    assert groups(slice_of(2, 4), slice_of(0, 2)) == 1
    assert groups(slice_of(0, 3), slice_of(1, 4)) == 1
    assert groups(slice_of(0, 2, 1), slice_of(2, 4, 3)) == 1
    assert groups(slice_of(0, 1, 1), slice_of(1, 2, 1), slice_of(2, 3, 1), slice_of(3, 4, 1)) == 4


def test_concat_with_a_shortcut_reads_as_many_channels_as_the_other_part() -> None:
    joined = law(concat([identity(), conv(Axis(1), reads=3, writes=2)]))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    close(apply_kernel(joined, x)[:, :3], x)
    assert joined.out_channels == 5


# --- embed
@given(parallel_kernels(), extras)
def test_embed_changes_the_lattice_and_not_the_meaning(parts: list[Kernel], extra: list[int]) -> None:
    merged = law(add(parts)).axes
    kernel = parts[0]
    assert merged is not None
    assert kernel.axes is not None
    wide = replace(embed(kernel, merged), border_value=law(add(parts)).border_value)
    chains = [[a] for a in kernel.axes]
    sizes = sizes_for(chains, extra)
    assume(all(fits(a, n) for a, n in zip(merged, sizes, strict=True)))
    x = image(kernel, sizes, next((k.in_channels for k in parts if k.in_channels), 3))
    close(apply_kernel(wide, x), apply_kernel(kernel, x))
    assert embed(kernel.shape_only(), merged).axes == wide.axes


@given(parallel_kernels())
def test_the_common_lattice_reflects_no_further_than_its_parts(parts: list[Kernel]) -> None:
    for i, axis in enumerate(law(add(parts)).axes or ()):
        assert axis.before == max(k.axes[i].before for k in parts if k.axes)
        assert axis.after == max(k.axes[i].after for k in parts if k.axes)


# --- compose
@given(composable_kernels(), extras)
def test_compose_is_one_after_the_other(pair: tuple[Kernel, Kernel], extra: list[int]) -> None:
    g, f = pair
    both = law(compose(g, f))
    assert f.axes is not None
    assert g.axes is not None
    sizes = sizes_for(list(zip(f.axes, g.axes, strict=True)), extra)
    x = image(f, sizes)
    close(apply_kernel(both, x), apply_kernel(g, apply_kernel(f, x)))
    shape = compose(g.shape_only(), f.shape_only())
    same_geometry(shape, both)


@st.composite
def any_pair(draw: st.DrawFn) -> tuple[Kernel, Kernel]:
    spatial = draw(st.sampled_from([1, 2, 1, 2, 3]))
    known = axes(max_kernel=3 if spatial < 3 else 2, max_dilation=2, max_stride=2, max_padding=3)
    near = axes(max_kernel=2, max_dilation=2, max_stride=1, max_padding=1, min_padding=-1)
    nothing = st.just(Axis())
    f = draw(kernels(spatial, along=st.one_of(known, nothing, near)))
    g = draw(kernels(spatial, channel_structures(in_channels=f.out_channels), st.one_of(known, near)))
    if draw(st.booleans()) and g.border_value is not None and f.bias is not None:
        g = replace(g, border_value=f.bias.clone())
    return g, f


@given(any_pair(), extras)
def test_compose_is_exact_or_refuses(pair: tuple[Kernel, Kernel], extra: list[int]) -> None:
    g, f = pair
    both = compose(g, f)
    shape = compose(g.shape_only(), f.shape_only())
    if isinstance(both, Refusal):
        assert isinstance(shape, Refusal)  # planning never promises what the values do not keep
        return
    assert f.axes is not None
    assert g.axes is not None
    sizes = sizes_for(list(zip(f.axes, g.axes, strict=True)), extra)
    x = image(f, sizes)
    close(apply_kernel(both, x), apply_kernel(g, apply_kernel(f, x)))
    if isinstance(shape, Kernel):
        same_geometry(shape, both)


@given(st.data(), st.integers(0, 3), extras)
def test_a_norm_behind_any_kernel_is_a_scale_of_its_rows(data: st.DataObject, spatial: int, extra: list[int]) -> None:
    f = data.draw(kernels(spatial))
    assert f.out_channels is not None
    mean, variance, gamma, beta, eps = data.draw(bn_statistics(f.out_channels))
    scale = (variance + eps).rsqrt() * (1 if gamma is None else gamma)
    shift = (0 if beta is None else beta) - mean * scale
    norm = Kernel(Channels.grouped(*[f.out_channels] * 3), None, scale[:, None], shift, True)
    both = law(compose(norm, f))
    assert both.axes == f.axes
    assert both.channels == f.channels
    sizes = sizes_for([[a] for a in f.axes or ()], extra)
    x = image(f, sizes)
    y = apply_kernel(f, x)
    wanted = F.batch_norm(y, mean, variance, gamma, beta, False, 0.0, eps)
    close(apply_kernel(both, x), wanted)
    same_geometry(compose(norm.shape_only(), f.shape_only()), both)


@given(kernels())
def test_the_identity_composes_with_everything_and_changes_nothing(kernel: Kernel) -> None:
    for both in (compose(identity(), kernel), compose(kernel, identity())):
        same = law(both)
        assert same.axes == kernel.axes
        assert same.channels == kernel.channels
        assert same.weight is not None
        assert kernel.weight is not None
        assert torch.equal(same.weight, kernel.weight)
        assert (same.bias is None) == (kernel.bias is None)
        assert torch.equal(dense_weight(same), dense_weight(kernel))
        if any(a.border is Border.CONSTANT for a in kernel.axes or ()):
            assert same.border_value is not None
            assert kernel.border_value is not None
            assert torch.equal(same.border_value, kernel.border_value)


def test_the_identity_and_a_scale_per_channel_are_composed_without_a_contraction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def contracted(*args: object) -> Tensor:
        raise AssertionError("a contraction where the weight is only scaled")

    monkeypatch.setattr("reptool.algebra.compose.contract", contracted)
    axis = (Axis(3), Axis(3))
    weight = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    layer = Kernel(Channels.grouped(4, 8, 2), axis, weight)
    assert law(compose(layer, identity())).weight is weight
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    scaled = law(compose(layer, Kernel(Channels.grouped(4, 4, 4), None, scale.reshape(4, 1))))
    assert scaled.weight is not None
    close(scaled.weight, torch.cat([weight[:4] * scale[:2, None, None], weight[4:] * scale[2:, None, None]]))
    scaled = law(compose(Kernel(Channels.grouped(8, 8, 8), None, torch.full((8, 1), 2.0).double()), layer))
    assert scaled.weight is not None
    close(scaled.weight, weight * 2)


@given(st.data(), extras)
def test_compose_is_associative_where_it_composes(data: st.DataObject, extra: list[int]) -> None:
    plain = axes([Border.ZEROS], max_kernel=3, max_stride=2, max_dilation=2, max_padding=0)
    f = data.draw(kernels(1, along=axes([Border.ZEROS], max_stride=2, max_dilation=2)))
    g = data.draw(kernels(1, channel_structures(in_channels=f.out_channels), plain))
    h = data.draw(kernels(1, channel_structures(in_channels=g.out_channels), plain))
    one, other = law(compose(h, law(compose(g, f)))), law(compose(law(compose(h, g)), f))
    assert one.axes is not None
    assert other.axes is not None
    assert (one.axes[0].extent, one.axes[0].stride) == (other.axes[0].extent, other.axes[0].stride)
    assert f.axes is not None
    assert g.axes is not None
    assert h.axes is not None
    sizes = sizes_for([[f.axes[0], g.axes[0], h.axes[0]]], extra)
    x = image(f, sizes)
    close(apply_kernel(one, x), apply_kernel(other, x))
    close(apply_kernel(one, x), apply_kernel(h, apply_kernel(g, apply_kernel(f, x))))


def test_kernels_on_any_channels_compose_with_each_other_and_with_a_dense_one() -> None:
    pool = Kernel(None, (Axis(2, stride=2), Axis(2, stride=2)), torch.full((1, 1, 2, 2), 0.25).double())
    doubled = Kernel(None, None, torch.full((1, 1), 2.0).double())
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64)
    close(apply_kernel(law(compose(doubled, pool)), x), 2 * F.avg_pool2d(x, 2))
    close(apply_kernel(law(compose(pool, pool)), x), F.avg_pool2d(F.avg_pool2d(x, 2), 2))
    shifted = Kernel(None, None, torch.ones(1, 1).double(), torch.ones(1).double(), True)
    close(apply_kernel(law(compose(shifted, doubled)), x), 2 * x + 1)
    close(apply_kernel(law(compose(pool, shifted)), x), F.avg_pool2d(x + 1, 2))
    dense = conv(Axis(3), Axis(3), reads=3, writes=4, bias=0.3)
    close(apply_kernel(law(compose(pool, dense)), x), F.avg_pool2d(apply_kernel(dense, x), 2))
    close(apply_kernel(law(compose(dense, pool)), x), apply_kernel(dense, F.avg_pool2d(x, 2)))


def test_padding_shared_out_over_two_layers_composes() -> None:
    rows, columns = Axis(1), Axis(7, before=3, after=3)
    separable = law(compose(conv(columns, rows), conv(rows, columns)))
    assert separable.axes == (columns, columns)
    causal = Axis(3, before=2, after=0)
    assert law(compose(conv(causal), conv(causal))).axes == (Axis(5, before=4, after=0),)


def test_depthwise_after_depthwise_stays_depthwise() -> None:
    f = conv(Axis(3), reads=3000, writes=3000, groups=3000)
    both = law(compose(f, f))
    assert both.weight is not None
    assert both.weight.shape == (3000, 1, 5)


# --- refusals of compose
def test_compose_refusals() -> None:
    three, padded = conv(Axis(3)), Axis(3, before=1, after=1)
    unknown = conv(Axis(3, before=1, after=1, border=Border.UNKNOWN))
    constant = conv(Axis(3, before=1, after=1, border=Border.CONSTANT))
    cases = [
        (Code.CHANNELS, conv(Axis(1), reads=3), three),
        (Code.LAYOUT, conv(), three),
        (Code.LAYOUT, conv(Axis(), Axis()), three),
        (Code.BORDER_BIAS, conv(padded), conv(Axis(1), bias=1.0)),
        (Code.BORDER_BIAS, conv(padded), conv(Axis(3, before=2, after=2), bias=1.0)),
        (Code.BORDER_READ, conv(padded), conv(padded)),
        (Code.BORDER_READ, conv(Axis(3, before=1, after=1, border=Border.REFLECT)), conv(padded)),
        (
            Code.BORDER_READ,
            conv(Axis(3, before=1, after=1, border=Border.REPLICATE)),
            conv(Axis(1, stride=2)),
        ),
        (Code.BORDER_READ, conv(Axis(3, before=1, after=1, border=Border.CIRCULAR)), conv(padded)),
        (Code.BORDER_READ, constant, conv(padded)),
        (Code.BORDER_MODE, conv(padded), conv(Axis(3, before=2, after=2, border=Border.CIRCULAR))),
        (Code.BORDER_UNKNOWN, three, unknown),
        (Code.BORDER_UNKNOWN, unknown, three),
        (Code.BORDER_UNKNOWN, unknown, conv(Axis(1), bias=1.0)),
        (Code.BORDER_UNKNOWN, three, replace(three, transposed=(1,))),
        (Code.BORDER_UNKNOWN, replace(three, transposed=(1,)), three),
        (Code.BORDER_BIAS, replace(three, transposed=(1,)), conv(Axis(1), bias=1.0)),
    ]
    for code, g, f in cases:
        refused(compose(g, f), code)
        refused(compose(g.shape_only(), f.shape_only()), code)
    refused(compose(constant, conv(Axis(1), bias=1.0)), Code.CONSTANT_VALUE)
    refused(compose(constant.shape_only(), conv(Axis(1)).shape_only()), Code.CONSTANT_VALUE)


def test_a_bias_known_to_be_zero_is_no_bias() -> None:
    padded = conv(Axis(3, before=1, after=1))
    zero = conv(Axis(1), bias=0.0)
    both = law(compose(padded, zero))
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    close(apply_kernel(both, x), apply_kernel(padded, apply_kernel(zero, x)))
    refused(compose(padded.shape_only(), zero.shape_only()), Code.BORDER_BIAS)


def test_an_unknown_border_takes_a_pointwise_map_behind_it_and_an_unbiased_one_before_it() -> None:
    unknown = conv(Axis(3, stride=2, before=1, after=1, border=Border.UNKNOWN))
    pointwise = conv(Axis(1), bias=1.0)
    behind = law(compose(pointwise, unknown))
    assert behind.axes == unknown.axes
    before = law(compose(unknown, conv(Axis(1))))
    assert before.axes == unknown.axes
    x = torch.randn(2, 2, 9, dtype=torch.float64)

    def padded(kernel: Kernel) -> Kernel:  # as if the image had been of the size that pads by (0, 1)
        assert kernel.axes is not None
        return replace(kernel, axes=(replace(kernel.axes[0], before=0, after=1, border=Border.ZEROS),))

    close(apply_kernel(padded(behind), x), apply_kernel(pointwise, apply_kernel(padded(unknown), x)))
    close(apply_kernel(padded(before), x), apply_kernel(padded(unknown), apply_kernel(conv(Axis(1)), x)))


def test_a_transposed_convolution_takes_pointwise_maps_behind_it_and_unbiased_ones_before_it() -> None:
    up = replace(conv(Axis(3), bias=0.2), transposed=(1, (2,), (1,)))
    mix = conv(Axis(1), bias=1.0, writes=4, seed=5)
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    behind = law(compose(mix, up))
    assert behind.transposed == up.transposed
    close(transposed(behind, x), apply_kernel(mix, transposed(up, x)))
    scale = Kernel(Channels.grouped(2, 2, 2), None, torch.tensor([[2.0], [-1.0]]).double(), None)
    close(transposed(law(compose(scale, up)), x), apply_kernel(scale, transposed(up, x)))
    plain = conv(Axis(1), seed=6)
    close(transposed(law(compose(up, plain)), x), transposed(up, apply_kernel(plain, x)))


# --- padding by a constant
def test_bn_and_pad() -> None:
    """DBB: an unbiased 1x1, a norm, the border filled with the norm's shift, an unpadded KxK."""
    pointwise, norm = conv(Axis(1)), conv(Axis(1), groups=2, bias=0.7)
    first = law(compose(norm, pointwise))
    pad = Kernel(
        Channels.grouped(2, 2, 2),
        (Axis(before=1, after=1, border=Border.CONSTANT),),
        torch.ones(2, 1, 1, dtype=torch.float64),
        border_value=first.bias,
    )
    filled = law(compose(pad, first))
    assert filled.axes == (Axis(before=1, after=1),)  # x extended by zeros
    both = law(compose(conv(Axis(3)), filled))
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    wanted = apply_kernel(conv(Axis(3)), apply_kernel(pad, apply_kernel(norm, apply_kernel(pointwise, x))))
    close(apply_kernel(both, x), wanted)


def test_a_constant_is_carried_back_through_a_scale() -> None:
    scale = Kernel(
        Channels.grouped(2, 2, 2),
        (Axis(),),
        torch.tensor([2.0, -4.0]).double().reshape(2, 1, 1),
        torch.ones(2).double(),
        True,
    )
    pad = conv(Axis(3, before=1, after=2, border=Border.CONSTANT))
    both = law(compose(pad, scale))
    assert both.border_value is not None
    assert both.border_value.tolist() == [-0.25, 0.125]
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    close(apply_kernel(both, x), apply_kernel(pad, apply_kernel(scale, x)))
    assert scale.weight is not None
    refused(compose(pad, replace(scale, weight=scale.weight * 0)), Code.CONSTANT_VALUE)


def test_a_constant_is_carried_back_through_maps_on_any_channels() -> None:
    one = torch.ones(1, dtype=torch.float64)
    pad = Kernel(None, (Axis(before=1, after=1, border=Border.CONSTANT),), one.reshape(1, 1, 1), border_value=3 * one)
    x = torch.randn(2, 2, 5, dtype=torch.float64)
    for f in (
        identity(),
        Kernel(None, None, one.reshape(1, 1) * 2),
        Kernel(None, None, one.reshape(1, 1), one, True),
    ):
        both = law(compose(pad, f))
        close(apply_kernel(both, x), F.pad(apply_kernel(f, x), (1, 1), value=3.0))


def test_a_bias_that_cancels_is_zero_and_one_that_does_not_is_not() -> None:
    """The rounding of what a bias is summed from is not a bias: through every law."""
    third = torch.full((2,), 0.1, dtype=torch.float64)
    f = replace(conv(Axis(3)), bias=third, biased=True)

    def scaled(shift: float, *along: Axis) -> Kernel:
        eye = torch.zeros(2, 1 if not along else 2, *[a.kernel_size for a in along], dtype=torch.float64)
        eye[:, 0] = 3.0 if not along else 1.5
        if along:
            eye[:, 1] = 1.5
        channels = Channels.grouped(2, 2, 1 if along else 2)
        return Kernel(channels, along or None, eye, torch.full((2,), shift, dtype=torch.float64), True)

    for g in (scaled(-0.3), scaled(-0.3, Axis())):
        both = law(compose(g, f))
        assert both.bias is not None
        assert both.bias.abs().max() < 1e-15
        assert both.bias_is_zero()
        assert law(concat([both, both])).bias_is_zero()
        assert law(compose(conv(Axis(1)), both)).bias_is_zero()
        assert law(compose(identity(), both)).bias_is_zero()
    assert law(add([f, replace(f, bias=-third)])).bias_is_zero()
    for other in (
        *(law(compose(g, f)) for g in (scaled(-0.3001), scaled(-0.3001, Axis()))),
        law(add([f, replace(f, bias=-1.001 * third)])),
        law(concat([f, conv(Axis(3))])),
        law(compose(conv(Axis(1)), f)),
        law(compose(scaled(0.0), f)),
    ):
        assert not other.bias_is_zero()


def test_a_constant_along_one_axis_does_not_disturb_the_other() -> None:
    """Where one axis is padded by a constant, what the first layer does along the other one matters too."""
    pad = conv(Axis(), Axis(before=1, after=1, border=Border.CONSTANT), groups=2)
    first_pads = conv(Axis(before=1, after=1, border=Border.CONSTANT), Axis(), groups=2, seed=3)
    first_pads = replace(first_pads, border_value=torch.tensor([3.0, -2.0]).double())
    first_pads_biased = replace(first_pads, bias=torch.full((2,), 0.5).double(), biased=True)
    first_sums = conv(Axis(3, before=1, after=1), Axis(), groups=2, seed=4)
    first_shifts = conv(Axis(3, before=1, after=1), Axis(), groups=2, seed=4, bias=0.5)
    first_steps = conv(Axis(stride=2, before=1), Axis(), groups=2, seed=4)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    for f in (first_pads, first_pads_biased, first_sums, first_shifts, first_steps):
        both = compose(pad, f)
        if isinstance(both, Kernel):
            close(apply_kernel(both, x), apply_kernel(pad, apply_kernel(f, x)))
        else:
            assert both.code is Code.CONSTANT_VALUE
    assert isinstance(compose(pad, first_shifts), Kernel)  # the constant is the bias: zeros, whatever f sums


# --- the refusals are needed: what the formula would give without them is wrong
def naive(g: Kernel, f: Kernel) -> Kernel:
    """Compose as though every border were right, as folding tools that look at shapes alone do."""
    assert f.axes is not None
    assert g.axes is not None
    cropped = law(compose(replace(g, axes=tuple(replace(a, before=0, after=0) for a in g.axes)), f))
    assert cropped.axes is not None
    along = []
    for both, fa, ga in zip(cropped.axes, f.axes, g.axes, strict=True):
        border = fa.border if fa.reads_outside else ga.border
        along.append(
            replace(
                both,
                before=both.before + fa.stride * ga.before,
                after=both.after + fa.stride * ga.after,
                border=border,
            )
        )
    return replace(cropped, axes=tuple(along))


@pytest.mark.parametrize(
    ("code", "g", "f"),
    [
        (Code.BORDER_BIAS, conv(Axis(3, before=1, after=1)), conv(Axis(1), bias=1.0)),
        (Code.BORDER_READ, conv(Axis(3, before=1, after=1)), conv(Axis(3, before=1, after=1))),
        (
            Code.BORDER_READ,
            conv(Axis(3, before=1, after=1, border=Border.REFLECT)),
            conv(Axis(3, before=1, after=1, border=Border.REFLECT)),
        ),
        (
            Code.BORDER_MODE,
            conv(Axis(3, before=1, after=1)),
            conv(Axis(3, before=2, after=2, border=Border.CIRCULAR)),
        ),
    ],
)
def test_a_border_that_is_refused_is_wrong_in_the_naive_merge(code: Code, g: Kernel, f: Kernel) -> None:
    refused(compose(g, f), code)
    x = torch.randn(2, 2, 11, dtype=torch.float64)
    wanted, given_ = apply_kernel(g, apply_kernel(f, x)), apply_kernel(naive(g, f), x)
    inside = slice(3, -3)
    close(given_[..., inside], wanted[..., inside])
    assert (given_ - wanted).abs().max() > 0.05


def test_circular_behind_circular_needs_stride_one_and_an_output_as_large_as_the_input() -> None:
    g = conv(Axis(3, before=0, after=2, border=Border.CIRCULAR))
    exact = Axis(3, before=2, after=0, border=Border.CIRCULAR)
    law(compose(g, conv(exact)))
    x = torch.randn(1, 2, 7, dtype=torch.float64)  # an odd size: with stride 2 the ends do not meet
    for other in (replace(exact, stride=2), replace(exact, after=2), replace(exact, before=0)):
        refused(compose(g, conv(other)), Code.BORDER_READ)
        wanted = apply_kernel(g, apply_kernel(conv(other), x))
        assert (apply_kernel(naive(g, conv(other)), x) - wanted).abs().max() > 0.05


def test_two_circular_paddings_on_one_side_raise_where_each_alone_does_not() -> None:
    """An image of 3 can be wrapped by 2 twice, not by 4 at once."""
    f = g = conv(Axis(5, before=2, after=2, border=Border.CIRCULAR))
    refused(compose(g, f), Code.BORDER_READ)
    x = torch.randn(1, 2, 3, dtype=torch.float64)
    for padding, fits in ((2, True), (4, False)):
        layer = nn.Conv1d(2, 2, 2 * padding + 1, padding=padding, padding_mode="circular", dtype=torch.float64)
        with contextlib.nullcontext() if fits else pytest.raises(RuntimeError, match="wrapping around"):
            assert layer(x).shape == x.shape


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_condition_on_the_padding_is_the_least_that_is_exact(stride: int) -> None:
    """One less than the padding the law asks for, on either side, is wrong for some image."""
    g = conv(Axis(3, before=2, after=2))
    span = 4
    enough = Axis(3, stride, 2, span - (stride - 1), span)
    law(compose(g, conv(enough)))
    for less in (replace(enough, before=enough.before - 1), replace(enough, after=enough.after - 1)):
        f = conv(less)
        refused(compose(g, f), Code.BORDER_READ)
        worst = 0.0
        for size in range(6, 16):
            x = torch.randn(1, 2, size, dtype=torch.float64)
            wanted, given_ = apply_kernel(g, apply_kernel(f, x)), apply_kernel(naive(g, f), x)
            worst = max(worst, float((given_ - wanted).abs().max()))
        assert worst > 0.05


def test_operands_are_never_modified() -> None:
    f, g = conv(Axis(3, before=1, after=1), bias=0.5), conv(Axis(1), bias=-0.5, groups=2)
    kept = [t.clone() for k in (f, g) for t in (k.weight, k.bias) if t is not None]
    for result in (add([f, g]), concat([f, g]), compose(g, f), compose(f, replace(g, bias=None))):
        assert law(result).weight is not None
    for before, after in zip(kept, [t for k in (f, g) for t in (k.weight, k.bias) if t is not None], strict=True):
        assert torch.equal(before, after)
