"""Constants along the channels: one number for each channel, broadcast over batch and positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.lift.reading import Context, is_number
from reptool.refusal import Code, Refusal

MAX_AXES = 3
"""There are no convolutions along more axes."""


def along_channels(
    value: Any, exact: Tensor | float, source: fx.Node, ctx: Context
) -> tuple[Kernel, Tensor] | Refusal | None:
    """The shape of a per-channel constant as a kernel, and the constant ``[C]`` (or ``[1]``)."""
    refusal = _changes_dtype(value, ctx.dtype(source))
    if refusal is not None:
        return refusal
    if is_number(value):
        return Kernel(None, None), torch.full((1,), float(exact), dtype=torch.float64)
    if not isinstance(value, Tensor) or not isinstance(exact, Tensor) or value.is_complex():
        return None
    exact = exact.double()
    if value.numel() == 1:
        return _adds_axes(value, ctx.rank(source), 1) or (Kernel(None, None), exact.reshape(1))
    wide = [i for i, size in enumerate(value.shape) if size != 1]
    if len(wide) > 1:
        return Refusal(Code.BROADCAST, f"a constant of shape {tuple(value.shape)} varies along more than the channels")
    behind = value.dim() - 1 - wide[0]
    rank = ctx.rank(source)
    if behind > MAX_AXES:
        return Refusal(
            Code.BROADCAST, f"a constant of shape {tuple(value.shape)} has {behind} axes behind the channels"
        )
    added = _adds_axes(value, rank, behind + 2 if behind else 1)
    if added is not None:
        return added
    if rank is not None and behind and behind != ctx.axes(rank):
        return Refusal(
            Code.BROADCAST, f"a constant of shape {tuple(value.shape)} varies along an axis that is not the channels"
        )
    count = value.numel()
    known = ctx.channels(source, behind)
    if known is not None and known != count:
        return Refusal(Code.BROADCAST, f"a constant of {count} channels on a value of {known}")
    return Kernel(Channels.grouped(count, count, count), (Axis(),) * behind), exact.reshape(count)


def _adds_axes(value: Tensor, rank: int | None, least: int) -> Refusal | None:
    """Whether arithmetic with this constant may give a value of more axes; of an unknown rank it has `least`."""
    shape = tuple(value.shape)
    if rank is None and value.dim() > least:
        return Refusal(Code.RANK_UNKNOWN, f"a constant of shape {shape} may add axes to a value of unknown rank")
    if rank is not None and value.dim() > rank:
        return Refusal(Code.BROADCAST, f"a constant of shape {shape} adds axes to a value of {rank}")
    return None


def _changes_dtype(value: Any, dtype: torch.dtype | None) -> Refusal | None:
    """Whether arithmetic with this constant gives another dtype than the value has (unknown: taken for the same)."""
    if dtype is None:
        return None
    if not dtype.is_floating_point:
        return Refusal(Code.DTYPE, f"arithmetic on a value of {dtype}: no layer reads that")
    if isinstance(value, Tensor) and value.dim() and torch.promote_types(dtype, value.dtype) != dtype:
        return Refusal(Code.DTYPE, f"a constant of {value.dtype} on a value of {dtype} gives {value.dtype}")
    return None
