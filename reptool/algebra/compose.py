"""The law `compose`: one kernel behind another, along each axis and over channels.

Geometry first, which is refused where the border of the second layer is not what the first would give there; then,
where both have weights, the formulas of `reptool.fusions`. Nothing here knows of ``torch.fx``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd

import numpy as np
import torch
from torch import Tensor

from reptool.algebra.kernel import ZERO_TOLERANCE, Axis, Border, Channels, Kernel
from reptool.algebra.operands import terms_of, total, unify_axes
from reptool.algebra.transposed import behind_transposed
from reptool.fusions.conv_bn import scale_rows
from reptool.fusions.sequential import carry_bias, contract, scale_columns
from reptool.refusal import Code, Refusal


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
    terms = terms_of(f)
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
    unified = unify_axes([g, f])
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
        through = terms_of(f)
        terms = total([terms_of(g), None if through is None else through * scale.abs()])
        return replace(shape, weight=weight, bias=bias, bias_terms=terms)
    if f.is_channelwise and f.is_pointwise:
        weight = scale_columns(g.weight, _rows_of(f.weight.flatten(), g))
    else:
        weight = _weight(g, f, shape)
    return _with_bias(g, f, shape, weight)


def _with_bias(g: Kernel, f: Kernel, shape: Kernel, weight: Tensor) -> Kernel:
    """A composition of this weight, with its bias."""
    assert g.weight is not None
    bias, terms = g.bias, terms_of(g)
    if f.bias is not None:
        rows = _rows_of(f.bias, g)
        bias = total([g.bias, carry_bias(g.weight[:, None], rows)[:, 0]])
        spread = terms_of(f)
        assert spread is not None
        terms = total([terms, carry_bias(g.weight.abs()[:, None], _rows_of(spread, g))[:, 0]])
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
