"""Ranks: for inputs of which number of axes the reading of an operation holds.

Convolutions and poolings also take a value without a batch, of one axis less, and linear layers one of any rank. An
operation that counts axes from the front, or spreads a constant over more of them, is another one there. So it is read
once more as if its input had the other rank, and where that gives anything else, the first reading holds for its own
rank alone.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.ops import Affine, Concat, Op, View
from reptool.lift.reading import Context, Lifted


def rank_held(node: fx.Node, op: Op, ctx: Context, lift: Callable[[fx.Node, Context], Lifted]) -> int | None:
    """The rank of its input for which alone an operation is right; None where it is right for every other one too.

    Args:
        node: the operation.
        op: what it was read as.
        ctx: how it was read.
        lift: reads it.
    """
    source = op.source if isinstance(op, Affine) else op.sources[0] if op.sources else None
    rank = None if source is None else ctx.rank(source)
    if source is None or rank is None:
        return None
    behind = ctx.behind(source)
    if isinstance(op, Affine) and op.shape.axes is not None:
        behind = len(op.shape.axes)
    axes = rank - 2 if behind is None else behind
    batched = axes > 0 and rank == axes + 2
    steps = (-1,) if batched else (1, -1) if rank > 2 else (1,)
    same = (_same(op, lift(node, ctx.at_ranks(step, batched)), rank - batched) for step in steps)
    return None if all(same) else rank


def _same(one: Op, other: Lifted, axes: int) -> bool:
    """Whether two readings are one, apart from the batch."""
    if isinstance(one, Affine) and isinstance(other, Affine):
        return one.source is other.source and _same_map(one.shape, other.shape)
    if isinstance(one, View) and isinstance(other, View):
        return _without_batch(one, axes) == _without_batch(other, axes)
    if isinstance(one, Concat) and isinstance(other, Concat):
        return one.axes == other.axes
    return type(one) is type(other)


def _same_map(one: Kernel, other: Kernel) -> bool:
    return one.channels == other.channels and one.axes == other.axes and one.transposed == other.transposed


def _without_batch(view: View, axes: int) -> dict[int, int]:
    return {old: new for old, new in view.moves.items() if old < axes}
