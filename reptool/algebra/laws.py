"""The laws: `add`, `compose`, `concat`, `embed`. Each returns the exact kernel or a `Refusal`.

The same functions serve shapes (planning) and values (materialization): geometry first, then, where the operands
have weights, the formulas of `reptool.fusions`. Nothing here knows of ``torch.fx``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import gcd

import numpy as np
import torch
from torch import Tensor

from reptool.algebra.kernel import ZERO_TOLERANCE, Axis, Border, Channels, Kernel, rewindow
from reptool.algebra.transposed import behind_transposed, on_one_lattice
from reptool.fusions.branch_add import branch_add
from reptool.fusions.branch_concat import branch_concat
from reptool.fusions.conv_bn import scale_rows
from reptool.fusions.kernel_size import common_lattice, embed_on
from reptool.fusions.sequential import carry_bias, contract, scale_columns
from reptool.refusal import Code, Refusal

Taps = tuple[int, int, int]


# --- making operands comparable -------------------------------------------------------------------------------------
def _unify_axes(kernels: Sequence[Kernel]) -> list[Kernel] | Refusal:
    counts = {len(k.axes) for k in kernels if k.axes is not None}
    if len(counts) > 1:
        return Refusal(Code.LAYOUT, f"kernels over {' and '.join(map(str, sorted(counts)))} spatial axes")
    return [k.with_axes(counts.copy().pop()) for k in kernels] if counts else list(kernels)


def _unify_inputs(kernels: Sequence[Kernel]) -> list[Kernel] | Refusal:
    counts = {k.in_channels for k in kernels if k.in_channels is not None}
    if len(counts) > 1:
        return Refusal(Code.CHANNELS, f"branches that read {' and '.join(map(str, sorted(counts)))} channels")
    return [k.with_channels(counts.copy().pop()) for k in kernels] if counts else list(kernels)


def _terms(kernel: Kernel) -> Tensor | None:
    if kernel.bias is None:
        return None
    return kernel.bias.abs() if kernel.bias_terms is None else kernel.bias_terms


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    given = [p for p in parts if p is not None]
    return reduce(torch.add, given) if given else None


# --- embed ----------------------------------------------------------------------------------------------------------
def _merge_axis(axes: Sequence[Axis], what: str, raises: bool) -> Axis | Refusal:
    """The lattice of parallel kernels along one axis.

    `raises` tells that the original raises where sizes differ (a concatenation does, a sum may broadcast): then
    extents may differ by less than the stride, and the largest one gives the right size wherever there is one.
    """
    if any(a.border is Border.UNKNOWN for a in axes):
        return Refusal(Code.BORDER_UNKNOWN, f"a branch of the {what} pads by the size of its input")
    if len({a.stride for a in axes}) > 1:
        return Refusal(Code.STRIDE, f"branches of the {what} have strides {sorted({a.stride for a in axes})}")
    extents = {a.extent for a in axes}
    if len(extents) > 1 and not (raises and max(extents) - min(extents) < axes[0].stride):
        return Refusal(
            Code.EXTENT,
            f"branches of the {what} write images of different sizes (extents {sorted({a.extent for a in axes})})",
        )
    borders = {a.border for a in axes if a.reads_outside}
    if len(borders) > 1:
        return Refusal(
            Code.BORDER_MODE, f"branches of the {what} extend their input by {sorted(b.value for b in borders)}"
        )
    size, dilation, before = common_lattice([_taps(a) for a in axes])
    after = max(extents) - before + dilation * (size - 1)
    return Axis(size, axes[0].stride, dilation, before, after, borders.pop() if borders else Border.ZEROS)


def _taps(axis: Axis) -> Taps:
    return axis.kernel_size, axis.dilation, axis.before


def embed(kernel: Kernel, axes: Sequence[Axis]) -> Kernel:
    """The same map on a wider lattice of taps (which must hold its own), zeros elsewhere."""
    assert kernel.axes is not None
    if kernel.weight is None:
        return replace(kernel, axes=tuple(axes))
    weight = embed_on(kernel.weight, [_taps(a) for a in kernel.axes], [_taps(a) for a in axes])
    return replace(kernel, axes=tuple(axes), weight=weight)


def _same_border_value(kernels: Sequence[Kernel]) -> Tensor | Refusal | None:
    values = [k.border_value for k in kernels if any(a.border is Border.CONSTANT for a in k.axes or ())]
    if any(v is None for v in values):
        return Refusal(Code.CONSTANT_VALUE, "the constants that the branches pad with are not known")
    if any(not torch.equal(v, values[0]) for v in values if v is not None and values[0] is not None):
        return Refusal(Code.BORDER_MODE, "branches pad with different constants")
    return values[0] if values else None


def _parallel(
    kernels: Sequence[Kernel], what: str, raises: bool = False
) -> tuple[list[Kernel], tuple[Axis, ...] | None, Tensor | None] | Refusal:
    """Bring parallel kernels of one input onto one lattice."""
    unified = _unify_axes(kernels)
    if isinstance(unified, Refusal):
        return unified
    same = _unify_inputs(unified)
    if isinstance(same, Refusal):
        return same
    same = on_one_lattice(same, what)
    if isinstance(same, Refusal):
        return same
    value = _same_border_value(same)
    if isinstance(value, Refusal):
        return value
    if same[0].transposed is not None or same[0].axes is None:
        return list(same), same[0].axes, value
    merged: list[Axis] = []
    for along in zip(*[k.axes or () for k in same], strict=True):
        axis = _merge_axis(along, what, raises)
        if isinstance(axis, Refusal):
            return axis
        merged.append(axis)
    return [embed(k, merged) for k in same], tuple(merged), value


# --- add ------------------------------------------------------------------------------------------------------------
def add(kernels: Sequence[Kernel]) -> Kernel | Refusal:
    """The sum of parallel kernels of one input.

    Refuses: `CHANNELS`, `LAYOUT`, `STRIDE`, `EXTENT`, `BORDER_MODE`, `BORDER_UNKNOWN`, `CONSTANT_VALUE`.
    """
    if len({k.out_channels for k in kernels if k.out_channels is not None}) > 1:
        return Refusal(
            Code.CHANNELS, f"branches that write {sorted({k.out_channels for k in kernels if k.out_channels})} channels"
        )
    aligned = _parallel(kernels, "sum")
    if isinstance(aligned, Refusal):
        return aligned
    parts, axes, value = aligned
    if len({k.out_channels for k in parts}) > 1:
        return Refusal(
            Code.CHANNELS, f"a shortcut of {parts[0].in_channels} channels beside branches that write others"
        )
    channels = None if parts[0].channels is None else reduce(Channels.hull, [k.channels for k in parts if k.channels])
    biased = any(k.biased for k in parts)
    if any(k.weight is None for k in parts):
        return Kernel(channels, axes, None, None, biased, None, value, parts[0].transposed)
    if channels is not None:
        parts = [k.windowed(channels) for k in parts]
    weight, bias = branch_add([k.weight for k in parts if k.weight is not None], [k.bias for k in parts])
    return Kernel(channels, axes, weight, bias, biased, _sum([_terms(k) for k in parts]), value, parts[0].transposed)


# --- concat ---------------------------------------------------------------------------------------------------------
def concat(kernels: Sequence[Kernel]) -> Kernel | Refusal:
    """The concatenation along the channels of parallel kernels of one input.

    Refuses: as `add`; and `CHANNELS` where the number of channels of a part is not known.
    """
    aligned = _parallel(kernels, "concatenation", raises=True)
    if isinstance(aligned, Refusal):
        return aligned
    parts, axes, value = aligned
    if any(k.channels is None for k in parts):
        return Refusal(Code.CHANNELS, "a part of the concatenation has an unknown number of channels")
    maps = [k.channels for k in parts if k.channels is not None]
    channels = Channels(maps[0].in_channels, np.concatenate([m.lo for m in maps]), np.concatenate([m.hi for m in maps]))
    biased = any(k.biased for k in parts)
    if any(k.weight is None for k in parts):
        return Kernel(channels, axes, None, None, biased, None, value, parts[0].transposed)
    weights, start = [], 0
    for k, m in zip(parts, maps, strict=True):
        stop = start + m.out_channels
        window = _Rows(channels, start, stop)
        assert k.weight is not None
        weights.append(rewindow(k.weight, m, window))
        start = stop
    weight, bias = branch_concat(weights, [k.bias for k in parts])
    terms = None
    if bias is not None:
        none = [torch.zeros(m.out_channels, dtype=bias.dtype, device=bias.device) for m in maps]
        known = [_terms(k) for k in parts]
        terms = torch.cat([z if t is None else t for t, z in zip(known, none, strict=True)])
    return Kernel(channels, axes, weight, bias, biased, terms, value, parts[0].transposed)


class _Rows(Channels):
    """Rows ``start:stop`` of a structure, stored as wide as the whole."""

    def __init__(self, whole: Channels, start: int, stop: int) -> None:
        super().__init__(whole.in_channels, whole.lo[start:stop], whole.hi[start:stop])
        self.__dict__["width"] = whole.width
        self.__dict__["offset"] = whole.offset[start:stop]


# --- compose --------------------------------------------------------------------------------------------------------
def _compose_axis(g: Axis, f: Axis, f_biased: bool, position: int) -> Axis | Refusal:  # long: the border, side by side
    """Geometry of ``g`` after ``f`` along one axis, exact at the border or refused."""
    span = f.stride * g.span + f.span
    taps = [f.stride * g.dilation] * (g.kernel_size > 1) + [f.dilation] * (f.kernel_size > 1)
    step = gcd(*taps) if taps else 1
    before = f.stride * g.before + f.before
    after = f.extent + f.stride * g.extent - before + span

    def axis(border: Border) -> Axis:
        return Axis(span // step + 1, f.stride * g.stride, step, before, after, border)

    if Border.UNKNOWN in (f.border, g.border):
        if f.border is Border.UNKNOWN and g.is_pointwise:
            return f
        if g.border is Border.UNKNOWN and f.is_pointwise and not f_biased:
            return g
        return Refusal(Code.BORDER_UNKNOWN, f"axis {position}: the padding depends on the size of the input")
    if not g.reads_outside:
        return axis(f.border)
    if g.border in (Border.REFLECT, Border.REPLICATE, Border.CIRCULAR):
        if f.is_pointwise:
            return axis(g.border)
        if g.border is Border.CIRCULAR and f.stride == 1 and f.extent == 0 and f.border is Border.CIRCULAR:
            if before > max(f.before, g.before) or after > max(f.after, g.after):
                return Refusal(
                    Code.BORDER_READ,
                    f"axis {position}: padded twice, images smaller than {max(before, after)} wrap around twice",
                )
            return axis(g.border)
        return Refusal(
            Code.BORDER_READ,
            f"axis {position}: the second layer pads with {g.border.value} what is not pointwise in the first",
        )
    if g.border is Border.CONSTANT:
        if f.is_pointwise:
            return axis(Border.CONSTANT)
        return Refusal(
            Code.BORDER_READ,
            f"axis {position}: the second layer pads with a constant what is not pointwise in the first",
        )
    if f.reads_outside and f.border is not Border.ZEROS:
        return Refusal(
            Code.BORDER_MODE, f"axis {position}: the first layer pads with {f.border.value}, the second with zeros"
        )
    left = g.before <= 0 or f.before >= f.span - (f.stride - 1)
    right = g.after <= 0 or f.after >= f.span
    if not (left and right):
        return Refusal(
            Code.BORDER_READ, f"axis {position}: the second layer pads where the first would still see the image"
        )
    if f_biased:
        return Refusal(
            Code.BORDER_BIAS, f"axis {position}: the second layer pads with zeros, where the first would give its bias"
        )
    return axis(Border.ZEROS)


def _compose_border(g: Kernel, f: Kernel, axes: tuple[Axis, ...]) -> tuple[tuple[Axis, ...], Tensor | None] | Refusal:
    """The constant ``r`` that x is extended by so that ``W_f r + b_f = c``, the constant `g` pads with."""
    if not any(a.border is Border.CONSTANT for a in axes):
        return axes, None
    if not any(a.border is Border.CONSTANT for a in (g.axes or ())):
        return axes, f.border_value  # inherited from f
    if any(a.border is Border.CONSTANT for a in (f.axes or ())):
        return Refusal(Code.CONSTANT_VALUE, "both layers pad by a constant, along different axes")
    if f.weight is None or g.border_value is None:
        return Refusal(Code.CONSTANT_VALUE, "padding by a constant needs the values of both layers")
    wanted, bias = g.border_value, f.bias
    if bias is None:
        bias = torch.zeros_like(wanted)
    terms = _terms(f)
    scale = wanted.abs() + (bias.abs() if terms is None else terms)
    if bool(((wanted - bias).abs() <= ZERO_TOLERANCE * scale).all()):
        return tuple(replace(a, border=Border.ZEROS) if a.border is Border.CONSTANT else a for a in axes), None
    constant = all(a.kernel_size == 1 and not a.reads_outside for a in f.axes or ())  # of a constant, along every axis
    if constant and f.is_channelwise and bool((f.weight != 0).all()):
        return axes, (wanted - bias) / f.weight.reshape(-1)
    return Refusal(Code.CONSTANT_VALUE, "the constant padded with is not what the first layer makes of a constant")


def compose(g: Kernel, f: Kernel) -> Kernel | Refusal:
    """The kernel of `g` applied to the output of `f`.

    Refuses: `CHANNELS`, `LAYOUT`, `BORDER_BIAS` (g pads zeros, f has a bias), `BORDER_READ` (outside its border f is
    not
    what g pads with), `BORDER_MODE`, `BORDER_UNKNOWN`, `CONSTANT_VALUE`.
    """
    unified = _unify_axes([g, f])
    if isinstance(unified, Refusal):
        return unified
    g, f = unified
    if f.is_identity:
        return g
    if g.channels is None and f.out_channels is not None:
        g = g.with_channels(f.out_channels)
    if f.channels is None and g.in_channels is not None:
        f = f.with_channels(g.in_channels)
    if g.in_channels != f.out_channels:
        return Refusal(
            Code.CHANNELS, f"the second layer reads {g.in_channels} channels, the first writes {f.out_channels}"
        )
    if f.transposed is not None or g.transposed is not None:
        return _compose_transposed(g, f)
    axes: tuple[Axis, ...] | None = None
    value: Tensor | None = None
    if g.axes is not None and f.axes is not None:
        biased = not f.bias_is_zero()
        composed: list[Axis] = []
        for position, (ga, fa) in enumerate(zip(g.axes, f.axes, strict=True)):
            axis = _compose_axis(ga, fa, biased, position)
            if isinstance(axis, Refusal):
                return axis
            composed.append(axis)
        bordered = _compose_border(g, f, tuple(composed))
        if isinstance(bordered, Refusal):
            return bordered
        axes, value = bordered
    return _values(g, f, Kernel(_after(g, f), axes, None, None, g.biased or f.biased, None, value))


def _after(g: Kernel, f: Kernel) -> Channels | None:
    if g.channels is None or f.channels is None:
        return None
    if g.is_channelwise:
        return f.channels
    return g.channels if f.is_channelwise else g.channels.after(f.channels)


def _compose_transposed(g: Kernel, f: Kernel) -> Kernel | Refusal:
    """A map behind a transposed convolution; unbiased mixing before it."""
    if f.transposed is not None and g.is_pointwise:
        return _values(g, f, Kernel(_after(g, f), f.axes, None, None, g.biased or f.biased, transposed=f.transposed))
    if g.transposed is not None and len(g.transposed) == 6 and not f.is_channelwise:
        return Refusal(Code.BORDER_UNKNOWN, "a deformable convolution samples what it reads where data says")
    if g.transposed is not None and f.is_pointwise and f.bias_is_zero():
        return _values(g, f, Kernel(_after(g, f), g.axes, None, None, g.biased, transposed=g.transposed))
    if g.transposed is not None and f.is_pointwise:
        return Refusal(Code.BORDER_BIAS, "a transposed convolution spreads the first layer's bias unevenly")
    if g.transposed is not None or g.axes is None:
        return Refusal(Code.BORDER_UNKNOWN, "only pointwise maps compose with a transposed convolution")
    made = behind_transposed(g.axes, f)
    if isinstance(made, Refusal):
        return made
    shape = Kernel(_after(g, f), made.axes, None, None, g.biased or f.biased, transposed=made.transposed)
    if g.weight is None or f.weight is None:
        return shape
    weight = _weight_by_channel(g, f, made.weight) if f.is_channelwise else _weight_of(g, f, shape, made.weight)
    return _with_bias(g, f, shape, weight)


def _weight_by_channel(g: Kernel, f: Kernel, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`_weight_of` where each channel that `g` reads is a channel of what `f` reads."""
    assert g.weight is not None and f.weight is not None
    rows, columns = g.weight.shape[:2]
    first = f.weight[:, 0]
    if g.channels is not None and len(first) > 1:
        first = first[torch.as_tensor(g.channels.offset[:, None] + np.arange(columns))].flatten(0, 1)
    else:
        first = first.expand(rows * columns, *first.shape[1:])
    made = join(g.weight.flatten(0, 1)[:, None, None], first[:, None, None])
    return made.reshape(rows, columns, *made.shape[3:])


def _values(g: Kernel, f: Kernel, shape: Kernel) -> Kernel:
    """Weight and bias of a composition whose geometry is `shape`."""
    if g.weight is None or f.weight is None:
        return shape
    if g.is_channelwise and g.is_pointwise:
        scale = g.weight.flatten()
        weight, bias = scale_rows(f.weight, f.bias, scale, g.bias)
        through = _terms(f)
        terms = _sum([_terms(g), None if through is None else through * scale.abs()])
        return replace(shape, weight=weight, bias=bias, bias_terms=terms)
    if f.is_channelwise and f.is_pointwise:
        weight = scale_columns(g.weight, _rows_of(f.weight.flatten(), g))
    else:
        weight = _weight(g, f, shape)
    return _with_bias(g, f, shape, weight)


def _with_bias(g: Kernel, f: Kernel, shape: Kernel, weight: Tensor) -> Kernel:
    """A composition of this weight, with its bias."""
    assert g.weight is not None
    bias, terms = g.bias, _terms(g)
    if f.bias is not None:
        rows = _rows_of(f.bias, g)
        bias = _sum([g.bias, carry_bias(g.weight[:, None], rows)[:, 0]])
        spread = _terms(f)
        assert spread is not None
        terms = _sum([terms, carry_bias(g.weight.abs()[:, None], _rows_of(spread, g))[:, 0]])
    return replace(shape, weight=weight, bias=bias, bias_terms=terms)


def _rows_of(vector: Tensor, g: Kernel) -> Tensor:
    """``[O, width]``: for each row of `g` the entries of `vector` that it reads."""
    if g.channels is None or len(vector) == 1:
        return vector.reshape(1, 1)
    index = torch.as_tensor(g.channels.offset[:, None] + np.arange(g.channels.width))
    return vector[index]


def _weight(g: Kernel, f: Kernel, shape: Kernel) -> Tensor:
    """Contract the stored rows of `g` with those of `f`, block by block of rows that read the same channels."""
    assert g.weight is not None and f.weight is not None
    steps_g, steps_f = [], []
    if shape.transposed is not None:
        axes = len(f.axes or ())
        steps_g = steps_f = [1] * axes
    else:
        for ga, fa, both in zip(g.axes or (), f.axes or (), shape.axes or (), strict=True):
            steps_g.append(fa.stride * ga.dilation // both.dilation if ga.kernel_size > 1 else 1)
            steps_f.append(fa.dilation // both.dilation if fa.kernel_size > 1 else 1)
    return _weight_of(g, f, shape, lambda second, first: contract(second, first, steps_g, steps_f))


def _weight_of(g: Kernel, f: Kernel, shape: Kernel, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Blocks of rows that read the same channels, joined with what they read."""
    assert g.weight is not None and f.weight is not None
    if g.channels is None or f.channels is None or shape.channels is None:
        return join(g.weight[None], f.weight[None])[0]
    out: Tensor | None = None
    for rows, offset in _row_blocks(g.channels):
        inner = offset[:, None] + np.arange(g.channels.width)  # [B, I] channels between the layers
        start = shape.channels.offset[rows[:, 0]]
        first = _gather(f, inner, start, shape.channels.width)
        index = torch.as_tensor(rows)
        part = join(g.weight[index], first)
        if out is None:
            out = part.new_zeros(shape.channels.out_channels, *part.shape[2:])
        out[index.reshape(-1)] = part.flatten(0, 1)
    assert out is not None
    return out


def _row_blocks(channels: Channels) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows that share an interval, as ``(rows [B, R], offset [B])`` batches of equal R."""
    order = np.lexsort((np.arange(channels.out_channels), channels.hi, channels.lo))
    lo, hi = channels.lo[order], channels.hi[order]
    cuts = np.flatnonzero((lo[1:] != lo[:-1]) | (hi[1:] != hi[:-1])) + 1
    batches: dict[int, list[np.ndarray]] = {}
    for rows in np.split(order, cuts):
        batches.setdefault(len(rows), []).append(rows)
    return [(np.stack(b), channels.offset[np.stack(b)[:, 0]]) for b in batches.values()]


def _gather(f: Kernel, inner: np.ndarray, start: np.ndarray, width: int) -> Tensor:
    """Rows ``inner [B, I]`` of `f`, each block stored as `width` channels from ``start [B]``: ``[B, I, width, *K]``."""
    assert f.weight is not None and f.channels is not None
    picked = f.weight[torch.as_tensor(inner)]
    shift = f.channels.offset[inner] - start[:, None]
    if f.channels.width == width and not shift.any():
        return picked
    column = torch.as_tensor(shift[..., None] + np.arange(f.channels.width))
    held = (column >= 0) & (column < width)
    out = picked.new_zeros(*inner.shape, width, *picked.shape[3:])
    block, row = (torch.as_tensor(i) for i in np.indices(inner.shape))
    block, row = block[..., None].expand_as(column), row[..., None].expand_as(column)
    out[block[held], row[held], column[held]] = picked[held]
    return out
