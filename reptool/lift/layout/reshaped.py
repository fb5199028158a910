"""Views to other sizes: what they leave alone, and channels shuffled by hand, as ShuffleNet has it.

::

    x.view(b, g, c // g, h, w).transpose(1, 2).reshape(b, c, h, w)  =  x[:, [i % g * (c / g) + i // g]]

for sizes that are those of `x` (read from it, or one of them -1) and a known number of channels. Splitting, swapping
and what makes them contiguous are no map of anything by themselves (`Pieces`); the last view is. Which axes another
view leaves alone its sizes tell (`sizes.py`); one that leaves all of them alone is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from reptool.algebra.kernel import IDENTITY, Axis, identity
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Pieces, Unmoved, View
from reptool.lift.layout.sizes import Size, completed, given_sizes, listed, same_axes, shape_read, sizes_of
from reptool.lift.layout.slices import select_channels
from reptool.lift.reading import Context, Lifted, arguments, source_of


def reshaped(node: fx.Node, ctx: Context) -> Lifted:
    """``view`` and ``reshape``: axes left alone, the beginning of a shuffle of channels, or its end."""
    source = source_of(node, node.args[0], ctx) if node.args else None
    if source is None or len(node.kwargs) > (len(node.args) == 1):
        return None
    if isinstance(ctx.ops.get(source), Pieces):
        return _joined(node, source, ctx)
    kept = viewed(node, source, ctx)
    stays = isinstance(kept, Unmoved) or (isinstance(kept, View) and ctx.behind(source) in kept.moves)
    splits = not stays and not node.kwargs and _split(node, source, ctx) is not None
    return Pieces(source) if splits else kept


def unflattened(node: fx.Node, ctx: Context) -> Lifted:
    """``unflatten`` of one axis."""
    given = arguments(node, ("input", "dim", "sizes"), {})
    source = None if given is None or len(given) != 3 else source_of(node, given["input"], ctx)
    before = None if source is None else sizes_of(source, ctx)
    if given is None or source is None or before is None or type(given["dim"]) is not int:
        return None
    sizes, dim = listed(given["sizes"], ctx), given["dim"]
    if sizes is None or not -len(before) <= dim < len(before):
        return None
    dim %= len(before)
    made = completed([before[dim]], sizes)
    named = [None if s == -1 else s for s in sizes]
    after = [*before[:dim], *made, *before[dim + 1 :]]
    whole = [*[None] * dim, *sizes, *[None] * (len(before) - dim - 1)]
    return _arranged(source, before, after, [*[None] * dim, *named, *[None] * (len(before) - dim - 1)], whole)


def viewed_as(node: fx.Node, ctx: Context) -> Lifted:
    """``view_as`` and ``reshape_as``: the sizes of another value."""
    given = arguments(node, ("input", "other"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    like = None if given is None else source_of(node, given.get("other"), ctx)
    if source is None or like is None:
        return None
    if like is source:
        return Unmoved(source, IDENTITY, identity, follows=True)
    before, after = sizes_of(source, ctx), sizes_of(like, ctx)
    return None if before is None or after is None else _arranged(source, before, after, after, after)


def viewed(node: fx.Node, source: fx.Node, ctx: Context) -> Lifted:
    """A view to sizes that are given, by the axes that it leaves alone; the identity where these are all."""
    given: Any = [*node.args[1:], *node.kwargs.values()]
    if len(given) == 1 and shape_read(given[0], ctx) is source:
        return Unmoved(source, IDENTITY, identity, follows=True)
    before, sizes = sizes_of(source, ctx), given_sizes(node, ctx)
    if sizes is not None and before is None and ctx.behind(source) == 0:
        return _of_any_rank(source, sizes, ctx)
    if before is None or sizes is None:
        return None
    return _arranged(source, before, completed(before, sizes), [None if s == -1 else s for s in sizes], sizes)


def _of_any_rank(source: fx.Node, sizes: Sequence[Size | int], ctx: Context) -> Lifted:
    """What a linear layer gives, of nobody knows how many axes: the last one stays where its size is given."""
    count = ctx.channels(source, 0)
    kept = count is not None and sizes[-1] == Size(count)
    return View(source, {0: 0}, None, frozenset({0}), ([], sizes)) if kept else None


def _arranged(
    source: fx.Node, before: list[Size], after: Sequence[Size | None], named: Sequence[Any], given: Sequence[Any]
) -> Lifted:
    axes = same_axes(before, after)
    if axes == list(range(len(before))):
        return Unmoved(source, IDENTITY, identity)
    last = len(axes) - 1
    moves = {len(before) - 1 - old: last - new for new, old in enumerate(axes) if old >= 0}
    names = frozenset(last - b for b, s in enumerate(named) if s is not None)
    sizes = after if None not in after else None
    return View(source, moves, sizes, names, (before, given)) if moves else None


def _split(node: fx.Node, source: fx.Node, ctx: Context) -> int | None:
    """Into how many groups a view splits the channels, the other axes left alone."""
    before, given = sizes_of(source, ctx), given_sizes(node, ctx)
    if before is None or given is None or len(before) < 3 or len(given) != len(before) + 1 or before[1].of:
        return None
    batch, groups, each, *others = completed(before, given)
    if groups is None or each is None or groups.of or groups * each != before[1]:
        return None
    return groups.number if [batch, *others] == [before[0], *before[2:]] else None


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
    before, groups, given = sizes_of(origin, ctx), _split(at, origin, ctx), given_sizes(node, ctx)
    if before is None or groups is None or given is None or swaps != 1 or completed(before, given) != before:
        return None
    count = before[1].number
    rows = [i % groups * (count // groups) + i // groups for i in range(count)]
    lifted = select_channels(origin, (Axis(),) * (len(before) - 2), rows, count, (), 1)
    return replace(lifted, via=source) if isinstance(lifted, Affine) else None


_COPIES = ("contiguous", "clone")


def swapped(node: fx.Node, source: fx.Node, axes: Sequence[int] | None, ctx: Context) -> Lifted:
    """A permutation of what a view split: the two axes that were the channels, swapped."""
    if axes is None or name_of(source) not in ("view", "reshape"):
        return None
    return Pieces(source) if list(axes) == [0, 2, 1, *range(3, len(axes))] else None
