"""Views: values whose axes are moved or joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from reptool.ir.ops import Pieces, View
from reptool.lift.layout.reshaped import swapped
from reptool.lift.layout.sizes import ONE, product, size_of, sizes_of
from reptool.lift.reading import Context, Lifted, arguments, source_of


def _view(node: fx.Node, source: Any, ctx: Context, arrange: Callable[[int], Sequence[int] | None]) -> Lifted:
    """A view of known rank; `arrange` gives, for each axis of the result, the axis it is (-1: a mixture)."""
    read = source_of(node, source, ctx)
    rank = None if read is None else ctx.rank(read)
    if read is None or rank is None:
        return None
    axes = arrange(rank)
    if isinstance(ctx.ops.get(read), Pieces):
        return swapped(node, read, axes, ctx)
    if axes is None:
        return None
    moves = {rank - 1 - old: len(axes) - 1 - new for new, old in enumerate(axes) if old >= 0}
    before = sizes_of(read, ctx) if list(axes).count(-1) == 1 else None
    if before is None:
        return View(read, moves)
    rest = product([s for a, s in enumerate(before) if a not in axes])
    return View(read, moves, [rest if old < 0 else before[old] for old in axes])


def _flatten(node: fx.Node, source: Any, start: Any, end: Any, ctx: Context) -> Lifted:
    if type(start) is not int or type(end) is not int:
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        first, last = start % rank, end % rank
        if first > last:
            return None
        whole = first == last or ((first, last) == (1, rank - 1) and _of_one_position(node, source, rank, ctx))
        return [*range(first), first if whole else -1, *range(last + 1, rank)]

    return _view(node, source, ctx, arrange)


def _of_one_position(node: fx.Node, source: Any, rank: int, ctx: Context) -> bool:
    """Whether what is flattened has one position: the layer behind reads as many features as there are channels."""
    read = source_of(node, source, ctx)
    count = None if read is None else ctx.channels(read, rank - 2)
    return count is not None and count == ctx.expected(node, 0)


def flatten_function(node: fx.Node, ctx: Context) -> Lifted:
    """``flatten``."""
    given = arguments(node, ("input", "start_dim", "end_dim"), {"start_dim": 0, "end_dim": -1})
    return None if given is None else _flatten(node, given["input"], given["start_dim"], given["end_dim"], ctx)


def flatten_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """``nn.Flatten``."""
    return _flatten(node, node.args[0], module.start_dim, module.end_dim, ctx)


def transpose(node: fx.Node, ctx: Context) -> Lifted:
    """``transpose`` of two axes."""
    given = arguments(node, ("input", "dim0", "dim1"), {})
    if given is None or not all(type(given.get(k)) is int for k in ("dim0", "dim1")):
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        axes = list(range(rank))
        i, j = given["dim0"] % rank, given["dim1"] % rank
        axes[i], axes[j] = axes[j], axes[i]
        return axes

    return _view(node, given["input"], ctx, arrange)


def permute(node: fx.Node, ctx: Context) -> Lifted:
    """``permute`` of all axes."""
    dims: Any = node.args[1:] or (node.kwargs.get("dims"),)
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if not all(type(d) is int for d in dims):
        return None
    return _view(node, node.args[0], ctx, lambda rank: [d % rank for d in dims] if len(dims) == rank else None)


def movedim(node: fx.Node, ctx: Context) -> Lifted:
    """``movedim`` of one axis or of several."""
    given = arguments(node, ("input", "source", "destination"), {})
    if given is None or len(given) != 3:
        return None
    ours, theirs = ([d] if type(d) is int else d for d in (given["source"], given["destination"]))
    if not all(isinstance(d, (tuple, list)) and all(type(i) is int for i in d) for d in (ours, theirs)):
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        if len(ours) != len(theirs) or any(not -rank <= d < rank for d in (*ours, *theirs)):
            return None
        at = {new % rank: old % rank for old, new in zip(ours, theirs, strict=True)}
        rest = iter(d for d in range(rank) if d not in at.values())
        return [at[d] if d in at else next(rest) for d in range(rank)]

    return _view(node, given["input"], ctx, arrange)


def attribute(node: fx.Node, ctx: Context) -> Lifted:
    """``x.mT`` and, of two axes, ``x.T``."""
    source, name = node.args
    if name not in ("mT", "T"):
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        return swapped if rank == 2 or (rank > 2 and name == "mT") else None

    return _view(node, source, ctx, arrange)


def unsqueeze(node: fx.Node, ctx: Context) -> Lifted:
    """A new axis of one position."""
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    before = None if source is None else sizes_of(source, ctx)
    if given is None or source is None or before is None or type(given.get("dim")) is not int:
        return None
    rank, at = len(before), given["dim"] % (len(before) + 1)
    moves = {rank - 1 - a: rank - 1 - a + (at > a) for a in range(rank)}
    return View(source, moves, [*before[:at], ONE, *before[at:]])


def squeeze(node: fx.Node, ctx: Context) -> Lifted:
    """Axes left out that have one position whatever the input is."""
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    rank, dims = (None if source is None else ctx.rank(source)), None if given is None else given.get("dim")
    dims = (dims,) if type(dims) is int else dims
    if source is None or rank is None or not isinstance(dims, (tuple, list)) or not dims:
        return None
    if not all(type(d) is int and -rank <= d < rank and size_of(source, d % rank, ctx) == ONE for d in dims):
        return None
    left = [a for a in range(rank) if a not in {d % rank for d in dims}]
    return View(source, {rank - 1 - a: len(left) - 1 - i for i, a in enumerate(left)})
