"""The laws of kernels side by side: `add`, `concat`, `embed`. Each returns the exact kernel or a `Refusal`.

The same functions serve shapes (planning) and values (materialization): geometry first, then, where the operands
have weights, the formulas of `reptool.fusions`. Nothing here knows of ``torch.fx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel, rewindow
from reptool.algebra.operands import terms_of, total, unify_axes, unify_inputs
from reptool.algebra.transposed import on_one_lattice
from reptool.fusions.branch_add import branch_add
from reptool.fusions.branch_concat import branch_concat
from reptool.fusions.kernel_size import common_lattice, embed_on
from reptool.refusal import Code, Refusal

Taps = tuple[int, int, int]


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
    unified = unify_axes(kernels)
    if isinstance(unified, Refusal):
        return unified
    same = unify_inputs(unified)
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
    return Kernel(channels, axes, weight, bias, biased, total([terms_of(k) for k in parts]), value, parts[0].transposed)


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
        known = [terms_of(k) for k in parts]
        terms = torch.cat([z if t is None else t for t, z in zip(known, none, strict=True)])
    return Kernel(channels, axes, weight, bias, biased, terms, value, parts[0].transposed)


class _Rows(Channels):
    """Rows ``start:stop`` of a structure, stored as wide as the whole."""

    def __init__(self, whole: Channels, start: int, stop: int) -> None:
        super().__init__(whole.in_channels, whole.lo[start:stop], whole.hi[start:stop])
        self.__dict__["width"] = whole.width
        self.__dict__["offset"] = whole.offset[start:stop]
