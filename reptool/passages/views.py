"""Views to other sizes: channels that stay an axis of their own, or joined with all positions behind them.

::

    [N, C, *positions] -> [N, C, *others]    the channels stay, however the positions are arranged
    [N, *others, C] -> [*anything, C]        the channels stay last
    [N, C, *positions] -> [N, F]             the channels are joined with the positions

Since a view keeps the number of elements, the sizes that are not looked at are what is left. That the first size is the
batch's has to be shown: it is read from the value itself, or from one that it was made of sample by sample.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, View
from reptool.ir.shapes import keeps_shape
from reptool.lift.reading import Context, source_of
from reptool.passages.arrangements import is_one, joined
from reptool.passages.passage import Passage

_FAR = 100


def viewed(node: fx.Node, ctx: Context) -> Passage | None:
    """``view`` and ``reshape``."""
    source = source_of(node, node.args[0], ctx) if node.args and not node.kwargs else None
    rank = None if source is None else ctx.rank(source)
    given: Any = node.args[1:]
    sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else list(given)
    if source is None or rank is None or rank < 2 or len(sizes) < 2:
        return None
    moves = {}
    if _is_count(sizes[-1], source, 0, ctx) and sizes[-1] != -1:
        moves[0] = 0
    if _is_batch(node, sizes[0], source, rank, ctx):
        if (sizes[1] == -1 and len(sizes) > 2) or _is_count(sizes[1], source, rank - 2, ctx):
            moves[rank - 2] = len(sizes) - 2
        elif len(sizes) == 2 and not moves:
            return joined(source, 1, rank - 1, rank)
    return Passage(source, moves, keeps_rank=len(sizes) == rank) if moves else None


def _read_from(value: Any) -> tuple[fx.Node, int] | None:
    """The value whose size this is, and which one."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "call_method" and name_of(value) == "size" and len(value.args) == 2:
        of, at = value.args
    elif name_of(value) == "getitem" and isinstance(value.args[0], fx.Node):
        whole, at = value.args
        sized = name_of(whole) == "size" and len(whole.args) == 1 and not whole.kwargs  # type: ignore[union-attr, arg-type]
        shape = whole.target is getattr and whole.args[1] == "shape"  # type: ignore[union-attr]
        of = whole.args[0] if sized or shape else None  # type: ignore[union-attr]
    else:
        return None
    return (of, at) if isinstance(of, fx.Node) and type(at) is int else None


def _is_count(value: Any, source: fx.Node, behind: int, ctx: Context) -> bool:
    """Whether a size is the number of channels of a value."""
    if type(value) is int:
        return value == ctx.channels(source, behind)
    read = _read_from(value)
    rank = None if read is None else ctx.rank(read[0])
    if read is None or rank is None:
        return False
    of = ctx.read(value, read[0]) or read[0]
    if of is source:
        return read[1] % rank == rank - 1 - behind
    count = ctx.channels(of, rank - 1 - read[1] % rank)
    return count is not None and count == ctx.channels(source, behind)


def _is_batch(node: fx.Node, value: Any, source: fx.Node, rank: int, ctx: Context) -> bool:
    """Whether a size is that of the first axis of a value."""
    if value == -1:  # what is left: as many as there were, where every sample has as many elements as channels
        given: Any = node.args[1:]
        sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else list(given)
        alone = len(sizes) == 2 and rank > 2 and all(is_one(source, a, rank) for a in range(2, rank))
        return alone and sizes[1] != -1 and _is_count(sizes[1], source, rank - 2, ctx)
    read = _read_from(value)
    if read is None or read[1] != 0:
        return type(value) is int and source.meta.get("fixed", (None,))[:1] == (value,)
    of = ctx.read(value, read[0]) or read[0]
    at: fx.Node | None = source
    for _ in range(_FAR):
        if at is None or at is of:
            return at is not None
        at = _sample_by_sample(at, ctx)
    return False


def _sample_by_sample(node: fx.Node, ctx: Context) -> fx.Node | None:
    """The value that a node makes its samples of, one of one."""
    op = ctx.ops.get(node)
    if isinstance(op, Affine):
        return op.source
    if isinstance(op, View):
        before, after = ctx.rank(op.source), ctx.rank(node)
        kept = before is not None and after is not None and op.moves.get(before - 1) == after - 1
        return op.source if kept else None
    first = node.args[0] if node.args else None
    pooled = name_of(node).endswith(("pool1d", "pool2d", "pool3d", "interpolate"))
    if isinstance(first, fx.Node) and (keeps_shape(node) or pooled):
        return ctx.read(node, first) or first
    return None
