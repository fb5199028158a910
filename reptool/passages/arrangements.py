"""Axes joined, split, left out, put in, turned round; positions picked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from reptool.ir.nodes import name_of
from reptool.lift.reading import Context, arguments, ints, source_of
from reptool.passages.passage import Passage, left_axes


def joined(source: fx.Node, start: int, end: int, rank: int) -> Passage | None:
    """Axes `start` to `end` as one."""
    if not 0 <= start <= end < rank:
        return None
    moves = {rank - 1 - a: rank - 1 - a - (end - start if a < start else 0) for a in range(rank)}
    inside = dict.fromkeys(range(start, end + 1), rank - 1 - end)
    moves = {**moves, **{rank - 1 - a: b for a, b in inside.items() if a in (start, end)}}
    for a in range(start + 1, end):
        del moves[rank - 1 - a]
    tiled = {rank - 1 - start: False, rank - 1 - end: True} if start != end else {}
    return Passage(source, moves, joined=tiled, keeps_rank=start == end)


def flattened(source: fx.Node | None, start: Any, end: Any, ctx: Context) -> Passage | None:
    """``nn.Flatten``, or the function, with its arguments."""
    rank = None if source is None else ctx.rank(source)
    if source is None or rank is None or type(start) is not int or type(end) is not int:
        return None
    return joined(source, start % rank, end % rank, rank) if rank else None


def flatten(node: fx.Node, ctx: Context) -> Passage | None:
    """``flatten``."""
    given = arguments(node, ("input", "start_dim", "end_dim"), {"start_dim": 0, "end_dim": -1})
    if given is None:
        return None
    return flattened(source_of(node, given.get("input"), ctx), given["start_dim"], given["end_dim"], ctx)


def squeezed(node: fx.Node, ctx: Context) -> Passage | None:
    """Axes of one position left out."""
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    rank = None if source is None else ctx.rank(source)
    dims = None if given is None else given.get("dim")
    dims = (dims,) if type(dims) is int else dims
    if source is None or rank is None or not isinstance(dims, (tuple, list)) or not dims:
        return None
    if not all(type(d) is int and -rank <= d < rank and is_one(source, d % rank, rank) for d in dims):
        return None
    return Passage(source, left_axes(rank, {d % rank for d in dims}), keeps_rank=False)


def is_one(source: fx.Node, dim: int, rank: int) -> bool:
    """Whether an axis has one position whatever the input is: it was reduced, or pooled to one."""
    name = name_of(source)
    if name == "squeeze":
        gone: Any = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim")
        before = source.args[0]
        left: set[Any] = set(gone) if isinstance(gone, (tuple, list)) else {gone}
        if not isinstance(before, fx.Node) or not all(type(d) is int for d in left):
            return False
        whole = rank + len(left)
        rest = [a for a in range(whole) if a not in {d % whole for d in left}]
        return is_one(before, rest[dim], whole)
    if source.op == "call_module":
        size = getattr(source.meta.get("module"), "output_size", None)
    elif name.startswith("adaptive_"):
        size = source.args[1] if len(source.args) > 1 else source.kwargs.get("output_size")
    elif name in ("mean", "amax", "amin") and source.kwargs.get("keepdim", source.args[2:3] == (True,)):
        dims = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim")
        dims = (dims,) if type(dims) is int else dims
        return isinstance(dims, (tuple, list)) and any(type(d) is int and d % rank == dim for d in dims)
    else:
        return False
    sizes = ints(size, rank - 2) if rank > 2 else None
    return sizes is not None and dim >= 2 and sizes[dim - 2] == 1


def unsqueezed(node: fx.Node, ctx: Context) -> Passage | None:
    """A new axis."""
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    rank, dim = (None if source is None else ctx.rank(source)), None if given is None else given.get("dim")
    if source is None or rank is None or type(dim) is not int or not -rank - 1 <= dim <= rank:
        return None
    at = dim % (rank + 1)
    moves = {rank - 1 - a: rank - 1 - a + (at > a) for a in range(rank)}
    return Passage(source, moves, keeps_rank=False)


def indexed(node: fx.Node, ctx: Context) -> Passage | None:
    """An index of numbers, slices and new axes; the channels are an axis that is taken whole."""
    owner, key = node.args
    source = source_of(node, owner, ctx)
    rank = None if source is None else ctx.rank(source)
    if source is None or source.meta.get("kind") != "tensor":
        return None
    keys: Sequence[Any] = list(key) if isinstance(key, tuple) else [key]
    if not all(k is None or k is Ellipsis or type(k) is int or _plain(k) for k in keys):
        return None
    if rank is None or keys.count(Ellipsis) > 1:
        return None
    used = sum(k is not None and k is not Ellipsis for k in keys)
    at = keys.index(Ellipsis) if Ellipsis in keys else len(keys)
    keys = [*keys[:at], *[slice(None)] * (rank - used), *keys[at + 1 :]]
    moves, axis, behind = {}, 0, len(keys) - sum(type(k) is int for k in keys)
    for k in keys:
        if type(k) is not int:
            behind -= 1
        if k is not None:
            if k == slice(None):
                moves[rank - 1 - axis] = behind
            axis += 1
    return Passage(source, moves, keeps_rank=False) if axis == rank else None


def _plain(key: Any) -> bool:
    return isinstance(key, slice) and all(b is None or type(b) is int for b in (key.start, key.stop, key.step))


def moved(name: str) -> Callable[[fx.Node, Context], Passage | None]:
    """Positions turned round or moved along."""

    def read(node: fx.Node, ctx: Context) -> Passage | None:
        source = source_of(node, node.args[0], ctx) if node.args else None
        rank = None if source is None else ctx.rank(source)
        rest = node.args[1 if name == "flip" else 2 :]
        dims: Any = node.kwargs.get("dims", rest[0] if len(rest) == 1 else rest)
        dims = (dims,) if type(dims) is int else dims
        if source is None or rank is None or not isinstance(dims, (tuple, list)) or not dims:
            return None
        if not all(type(d) is int and -rank <= d < rank for d in dims):
            return None
        return Passage(source, left_axes(rank, {d % rank for d in dims}, True))

    return read
