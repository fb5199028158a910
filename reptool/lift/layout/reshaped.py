"""Channels shuffled by hand: axes split, swapped and joined again, as ShuffleNet has it.

::

    x.view(b, g, c // g, h, w).transpose(1, 2).reshape(b, c, h, w)  =  x[:, [i % g * (c / g) + i // g]]

for sizes that are those of `x` (read from it, or one of them -1) and a known number of channels. Splitting, swapping
and what makes them contiguous are no map of anything by themselves (`Pieces`); the last view is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from reptool.algebra.kernel import Axis
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Pieces
from reptool.lift.layout.slices import select_channels
from reptool.lift.reading import Context, Lifted, source_of

Size = int | tuple[str, int]
"""A number, or which size of a value this is."""


def reshaped(node: fx.Node, ctx: Context) -> Lifted:
    """``view`` and ``reshape``: the beginning of a shuffle of channels, or its end."""
    source = source_of(node, node.args[0], ctx) if node.args and not node.kwargs else None
    if source is None:
        return None
    if isinstance(ctx.ops.get(source), Pieces):
        return _joined(node, source, ctx)
    return Pieces(source) if _split(node, source, ctx) is not None else None


def _split(node: fx.Node, source: fx.Node, ctx: Context) -> int | None:
    """Into how many groups a view splits the channels, the other axes left alone."""
    rank = ctx.rank(source)
    count = None if rank is None else ctx.channels(source, rank - 2)
    sizes = _sizes(node, source, ctx)
    if rank is None or rank < 3 or count is None or sizes is None or len(sizes) != rank + 1:
        return None
    groups = [s for s in sizes[1:3] if s != -1]
    first = groups[0] if groups else None
    if type(first) is not int or first < 1 or count % first:
        return None
    number = first if sizes[1] != -1 else count // first
    expected: list[Size] = [("size", 0), number, count // number, *(("size", i) for i in range(2, rank))]
    return number if _match(sizes, expected) else None


def _joined(node: fx.Node, source: fx.Node, ctx: Context) -> Lifted:
    """The channels behind the view that joins what a view split and a transposition swapped."""
    swaps, at = 0, source
    while True:
        held = ctx.ops.get(at)
        if not isinstance(held, Pieces):
            return None
        if name_of(at) in ("view", "reshape"):
            break
        swaps += name_of(at) not in _COPIES
        at = held.source
    origin = held.source
    rank, groups = ctx.rank(origin), _split(at, origin, ctx)
    count = None if rank is None else ctx.channels(origin, rank - 2)
    sizes = _sizes(node, origin, ctx)
    if rank is None or groups is None or count is None or sizes is None or swaps != 1:
        return None
    expected: list[Size] = [("size", 0), count, *(("size", i) for i in range(2, rank))]
    if not _match(sizes, expected):
        return None
    rows = [i % groups * (count // groups) + i // groups for i in range(count)]
    lifted = select_channels(origin, (Axis(),) * (rank - 2), rows, count, (), 1)
    return replace(lifted, via=source) if isinstance(lifted, Affine) else None


_COPIES = ("contiguous", "clone")


def swapped(node: fx.Node, source: fx.Node, axes: Sequence[int] | None, ctx: Context) -> Lifted:
    """A permutation of what a view split: the two axes that were the channels, swapped."""
    if axes is None or name_of(source) not in ("view", "reshape"):
        return None
    return Pieces(source) if list(axes) == [0, 2, 1, *range(3, len(axes))] else None


def _match(sizes: Sequence[Size], expected: Sequence[Size]) -> bool:
    """Whether a view to these sizes gives the expected ones: one may be left to be found."""
    if len(sizes) != len(expected) or sum(s == -1 for s in sizes) > 1:
        return False
    return all(s in (e, -1) for s, e in zip(sizes, expected, strict=True))


def _sizes(node: fx.Node, origin: fx.Node, ctx: Context) -> list[Size] | None:
    """The sizes a view is given, in numbers and in sizes of `origin`."""
    rank = ctx.rank(origin)
    given: Any = node.args[1:]
    given = given[0] if len(given) == 1 and not isinstance(given[0], int) else given
    if isinstance(given, fx.Node):
        found = _whole(given, origin, ctx)
        given = (
            [("size", i) if i != 1 else ctx.channels(origin, rank - 2) for i in range(rank)]
            if found and rank is not None
            else None
        )
    if not isinstance(given, (tuple, list)) or rank is None:
        return None
    out = [_size(s, origin, rank, ctx) for s in given]
    return [s for s in out if s is not None] if None not in out else None


def _whole(node: Any, origin: fx.Node, ctx: Context) -> bool:
    """Whether this is the shape of `origin`."""
    if not isinstance(node, fx.Node):
        return False
    shape = node.target is getattr and node.args[1] == "shape"
    size = node.op == "call_method" and name_of(node) == "size" and len(node.args) == 1 and not node.kwargs
    if not shape and not size:
        return False
    of = node.args[0]
    while isinstance(of, fx.Node) and of is not origin and (name_of(of) == "detach" or _is_data(of)):
        of = of.args[0]
    return isinstance(of, fx.Node) and ctx.read(node, of) is origin


def _is_data(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] == "data"


def _size(value: Any, origin: fx.Node, rank: int, ctx: Context) -> Size | None:
    """One size: a number (of channels, too), or which size of `origin` it is."""
    if type(value) is int or (isinstance(value, tuple) and value[0] == "size"):
        return value
    if not isinstance(value, fx.Node):
        return None
    at: Any = None
    name = name_of(value)
    if name == "getitem" and _whole(value.args[0], origin, ctx):
        at = value.args[1]
    elif value.op == "call_method" and name == "size" and len(value.args) == 2:
        at = value.args[1] if _whole_of(value, origin, ctx) else None
    elif name in ("floordiv", "mul", "truediv") and len(value.args) == 2 and not value.kwargs:
        a, b = (_size(v, origin, rank, ctx) for v in value.args)
        if type(a) is not int or type(b) is not int or b < 1 or a < 1:
            return None
        return a * b if name == "mul" else a // b if name == "floordiv" and a % b == 0 else None
    if type(at) is not int or not -rank <= at < rank:
        return None
    at %= rank
    return ctx.channels(origin, rank - 2) if at == 1 else ("size", at)


def _whole_of(node: fx.Node, origin: fx.Node, ctx: Context) -> bool:
    of = node.args[0]
    return isinstance(of, fx.Node) and ctx.read(node, of) is origin
