"""Hypothesis strategies for kernels, modules and statistics, small enough to be brute-forced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Axis, Border, Channels, Kernel

try:
    from hypothesis import strategies as st
    from hypothesis.strategies import DrawFn, SearchStrategy
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "the strategies of reptool.testing need Hypothesis: pip install 'reptool[test]' "
        "(randomize, assert_equivalent, assert_collapses and count_operations do without)"
    ) from error

KNOWN_BORDERS = (Border.ZEROS, Border.REFLECT, Border.REPLICATE, Border.CIRCULAR, Border.CONSTANT)
Statistics: TypeAlias = "tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]"

_seeds = st.integers(0, 2**16)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def axes(
    draw: DrawFn,
    borders: Sequence[Border] = KNOWN_BORDERS,
    max_kernel: int = 4,
    max_stride: int = 3,
    max_dilation: int = 3,
    max_padding: int = 4,
    min_padding: int = -2,
) -> Axis:
    """One `Axis`: any kernel size (even ones too), stride, dilation, and padding of either sign on each side.

    Args:
        draw: given by Hypothesis.
        borders: border modes to choose from.
        max_kernel: most taps.
        max_stride: largest stride.
        max_dilation: largest dilation.
        max_padding: most padding on a side.
        min_padding: least padding on a side; negative for crops.
    """
    padding = st.integers(min_padding, max_padding)
    return Axis(
        draw(st.integers(1, max_kernel)),
        draw(st.integers(1, max_stride)),
        draw(st.integers(1, max_dilation)),
        draw(padding),
        draw(padding),
        draw(st.sampled_from(list(borders))),
    )


@st.composite
def channel_structures(
    draw: DrawFn, in_channels: int | None = None, out_channels: int | None = None, max_width: int = 3
) -> Channels:
    """A `Channels`: dense, grouped, depthwise, a selection, a slice, concatenated slices, or any intervals.

    Args:
        draw: given by Hypothesis.
        in_channels: fixed number of channels read.
        out_channels: fixed number of channels written.
        max_width: most channels per group.
    """
    if in_channels is None and out_channels is None:
        groups = draw(st.integers(1, 4))
        in_channels, out_channels = (groups * draw(st.integers(1, max_width)) for _ in range(2))
    elif in_channels is None or out_channels is None:
        known = in_channels or out_channels or 1
        other = draw(st.sampled_from(sorted({1, 2, 3, known, 2 * known, max(known // 2, 1)})))
        in_channels, out_channels = in_channels or other, out_channels or other
    common = [g for g in range(1, min(in_channels, out_channels) + 1) if in_channels % g == out_channels % g == 0]
    kind = draw(st.sampled_from(["dense", "grouped", "grouped", "select", "slice", "parts", "any"]))
    if kind == "grouped":
        return Channels.grouped(in_channels, out_channels, draw(st.sampled_from(common)))
    if kind == "select":
        picked = st.lists(st.integers(0, in_channels - 1), min_size=out_channels, max_size=out_channels)
        return Channels.select(in_channels, draw(picked))
    interval = st.tuples(st.integers(0, in_channels - 1), st.integers(1, in_channels)).map(
        lambda pair: (min(pair[0], pair[1] - 1), max(pair[0] + 1, pair[1]))
    )
    if kind == "slice":
        rows = [draw(interval)] * out_channels
    elif kind == "parts":
        cut = draw(st.integers(0, out_channels))
        rows = [draw(interval)] * cut + [draw(interval)] * (out_channels - cut)
    elif kind == "any":
        rows = draw(st.lists(interval, min_size=out_channels, max_size=out_channels))
    else:
        return Channels.grouped(in_channels, out_channels)
    return Channels(in_channels, np.array([lo for lo, _ in rows]), np.array([hi for _, hi in rows]))


def _filled(draw: DrawFn, channels: Channels | None, along: tuple[Axis, ...], biased: bool | None) -> Kernel:
    """Random values for a geometry, zero where a row's interval is narrower than what is stored."""
    seed = draw(_seeds)
    rows, width = (1, 1) if channels is None else (channels.out_channels, channels.width)
    weight = _normal(seed, rows, width, *[a.kernel_size for a in along])
    if channels is not None:
        column = channels.offset[:, None] + np.arange(width)
        held = torch.as_tensor((column >= channels.lo[:, None]) & (column < channels.hi[:, None]))
        weight = weight * held.reshape(rows, width, *[1] * len(along))
    biased = draw(st.booleans()) if biased is None else biased
    value = None
    if any(a.border is Border.CONSTANT for a in along):
        value = _normal(seed + 1, 1 if channels is None else channels.in_channels)
    return Kernel(channels, along, weight, _normal(seed + 2, rows) if biased else None, biased, None, value)


@st.composite
def kernels(
    draw: DrawFn,
    spatial: int | None = None,
    channels: SearchStrategy[Channels] | Channels | None = None,
    along: SearchStrategy[Axis] | None = None,
    biased: bool | None = None,
) -> Kernel:
    """A materialized `Kernel` in float64.

    Args:
        draw: given by Hypothesis.
        spatial: number of spatial axes, 0 for a linear layer; 0 to 3 when None.
        channels: its channel structure, or a strategy for it.
        along: strategy for each axis.
        biased: whether it has a bias.
    """
    count = draw(st.sampled_from([2, 1, 2, 3, 0])) if spatial is None else spatial
    if channels is None:
        channels = channel_structures()
    structure = channels if isinstance(channels, Channels) else draw(channels)
    limits = axes(max_kernel=2, max_padding=2, max_dilation=2) if count == 3 else axes()
    return _filled(draw, structure, tuple(draw(limits if along is None else along) for _ in range(count)), biased)


@st.composite
def parallel_kernels(draw: DrawFn, spatial: int | None = None, same_outputs: bool = True) -> list[Kernel]:
    """Two to four kernels of one input inside the domain of `add` and `concat`.

    Strides, extents and border modes are equal.

    Args:
        draw: given by Hypothesis.
        spatial: number of spatial axes, 0 to 3.
        same_outputs: whether all write equally many channels, as summands do.
    """
    count = draw(st.sampled_from([2, 1, 3, 0])) if spatial is None else spatial
    leader = draw(channel_structures())
    border = [draw(st.sampled_from(KNOWN_BORDERS)) for _ in range(count)]
    stride = [draw(st.integers(1, 3)) for _ in range(count)]
    extent = [draw(st.integers(-4, 2)) for _ in range(count)]
    parts: list[Kernel] = []
    square = leader.in_channels == leader.out_channels
    value = _normal(draw(_seeds), 1 if square else leader.in_channels).expand(leader.in_channels)
    for _ in range(draw(st.integers(2, 4))):
        along = []
        for s, total, mode in zip(stride, extent, border, strict=True):
            tap = draw(axes([mode], max_kernel=2 if count == 3 else 4, max_stride=1, max_dilation=2, max_padding=3))
            along.append(replace(tap, stride=s, border=mode, after=total + tap.span - tap.before))
        if square and same_outputs and draw(st.integers(0, 4)) == 0:
            structure: Channels | None = None
        else:
            outputs = leader.out_channels if same_outputs else None
            structure = draw(channel_structures(leader.in_channels, outputs))
        kernel = _filled(draw, structure, tuple(along), None)
        if kernel.border_value is not None:
            kernel = replace(kernel, border_value=value[: len(kernel.border_value)].clone())
        parts.append(kernel)
    return parts


@st.composite
def composable_kernels(draw: DrawFn, spatial: int | None = None) -> tuple[Kernel, Kernel]:
    """``(g, f)``: two kernels, g after f, inside the domain of `compose`.

    Every axis takes one of its forms: g unpadded or cropping, f padded so far that g's zeros are f's (and
    without a bias), f pointwise before any border, circular behind circular on the other side.

    Args:
        draw: given by Hypothesis.
        spatial: number of spatial axes, 0 to 3.
    """
    count = draw(st.sampled_from([2, 1, 3, 0])) if spatial is None else spatial
    small = {"max_kernel": 2, "max_stride": 2, "max_dilation": 2} if count == 3 else {}
    first: list[Axis] = []
    second: list[Axis] = []
    unbiased = False
    for _ in range(count):
        form = draw(st.sampled_from(["unpadded", "unpadded", "zeros", "one side", "pointwise", "circular"]))
        f, g = draw(axes(**small)), draw(axes(**small))  # type: ignore[arg-type]
        if form == "unpadded":
            g = replace(g, before=min(g.before, 0), after=min(g.after, 0))
        elif form in ("zeros", "one side"):
            f = replace(f, border=Border.ZEROS)
            g = replace(g, border=Border.ZEROS)
            left, right = (True, True) if form == "zeros" else draw(st.sampled_from([(True, False), (False, True)]))
            if left:
                f = replace(f, before=max(f.before, f.span - (f.stride - 1)))
            if right:
                f = replace(f, after=max(f.after, f.span))
            g = replace(g, before=g.before if left else min(g.before, 0), after=g.after if right else min(g.after, 0))
            unbiased = unbiased or g.reads_outside
        elif form == "pointwise":
            f = Axis()
            borders = [Border.REFLECT, Border.REPLICATE, Border.CIRCULAR]
            g = replace(g, border=draw(st.sampled_from(borders)) if g.reads_outside else Border.ZEROS)
        else:
            f = replace(f, stride=1, after=f.span - f.before, border=Border.CIRCULAR)
            before, after = (b if a <= 0 else min(b, 0) for a, b in ((f.before, g.before), (f.after, g.after)))
            g = replace(g, before=before, after=after, border=Border.CIRCULAR)
        first.append(f)
        second.append(g)
    inner = draw(channel_structures())
    outer = draw(channel_structures(in_channels=inner.out_channels))
    f_kernel = _filled(draw, inner, tuple(first), False if unbiased else None)
    return _filled(draw, outer, tuple(second), None), f_kernel


@st.composite
def bn_statistics(draw: DrawFn, channels: int) -> Statistics:
    """The values of a normalization: ``running_mean, running_var, gamma, beta, eps``.

    Scales of both signs, zero and tiny; variances from tiny to large; odd eps; scale and shift None as in
    ``affine=False``.

    Args:
        draw: given by Hypothesis.
        channels: how many.
    """
    seed = draw(_seeds)

    def picked(values: Sequence[float]) -> Tensor:
        chosen = draw(st.lists(st.sampled_from(values), min_size=channels, max_size=channels))
        return torch.tensor(chosen, dtype=torch.float64)

    mean = _normal(seed, channels) * picked([0.0, 1.0, 30.0])
    variance = _normal(seed + 1, channels).exp() * picked([1.0, 1.0, 1e-9, 1e6])
    eps = draw(st.sampled_from([1e-5, 1e-3, 1e-12, 0.3]))
    if draw(st.integers(0, 4)) == 0:
        return mean, variance, None, None, eps
    gamma = _normal(seed + 2, channels) * picked([1.0, 1.0, -1.0, 0.0, 1e-8])
    return mean, variance, gamma, _normal(seed + 3, channels), eps


@st.composite
def norm_modules(draw: DrawFn, channels: int, spatial: int = 2) -> nn.Module:
    """A `nn.BatchNorm*d` in eval mode, float64, with `bn_statistics`.

    Args:
        draw: given by Hypothesis.
        channels: how many.
        spatial: number of spatial axes, 0 to 3.
    """
    mean, variance, gamma, beta, eps = draw(bn_statistics(channels))
    kind = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial]
    norm = kind(channels, eps=eps, affine=gamma is not None).double().eval()
    values = {"running_mean": mean, "running_var": variance, "weight": gamma, "bias": beta}
    norm.load_state_dict({k: v for k, v in values.items() if v is not None}, strict=False)
    return norm


@st.composite
def conv_modules(
    draw: DrawFn,
    spatial: int | None = None,
    in_channels: int | None = None,
    out_channels: int | None = None,
    padding_modes: Sequence[str] = ("zeros", "reflect", "replicate", "circular"),
) -> nn.Module:
    """A `nn.Conv*d` in float64 of any geometry, groups, bias and padding mode.

    Args:
        draw: given by Hypothesis.
        spatial: number of spatial axes, 1 to 3.
        in_channels: fixed number of channels read.
        out_channels: fixed number of channels written.
        padding_modes: to choose from.
    """
    count = draw(st.sampled_from([2, 1, 3])) if spatial is None else spatial
    groups = draw(st.integers(1, 3)) if in_channels is None and out_channels is None else 1
    reads = in_channels or groups * draw(st.integers(1, 3))
    writes = out_channels or groups * draw(st.integers(1, 3))
    groups = draw(st.sampled_from([g for g in range(1, 7) if reads % g == writes % g == 0]))

    def each(most: int, least: int = 1) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(count))

    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[count]
    conv: nn.Module = kind(
        reads,
        writes,
        each(2 if count == 3 else 4),  # type: ignore[arg-type]
        stride=each(2),  # type: ignore[arg-type]
        padding=each(2, 0),  # type: ignore[arg-type]
        dilation=each(2),  # type: ignore[arg-type]
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(list(padding_modes))),
    )
    conv = conv.double().eval()
    seed = draw(_seeds)
    with torch.no_grad():
        for index, parameter in enumerate(conv.parameters()):
            parameter.copy_(_normal(seed + index, *parameter.shape))
    return conv
