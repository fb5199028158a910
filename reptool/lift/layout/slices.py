"""Concatenations, slices and pieces of a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.fusions.shortcut import dirac_kernel
from reptool.ir.decisions import decided
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Concat, Pieces
from reptool.lift.reading import Context, Lifted, arguments, cone_of, fixed, handed_on, owned, source_of, varies
from reptool.refusal import Code, Refusal

SPLITS = ("chunk", "split", "tensor_split", "split_with_sizes")


def cat(node: fx.Node, ctx: Context) -> Lifted:
    """A concatenation along the channels."""
    given = arguments(node, ("tensors", "dim", "axis"), {"dim": 0})
    if given is None or len(node.args) > 2:
        return None
    given["dim"] = given.get("axis", given["dim"])
    parts = given["tensors"]
    if not isinstance(parts, (tuple, list)) or not all(varies(p) for p in parts) or type(given["dim"]) is not int:
        return None
    reads = [source_of(node, p, ctx) for p in parts]
    if any(r is None for r in reads) or not reads:
        return None
    sources = [r for r in reads if r is not None]
    behind = channels_behind(given["dim"], sources[0], ctx)
    return None if behind is None else Concat(sources, behind)


def channels_behind(dim: int, source: fx.Node, ctx: Context) -> int | None:
    """Axes behind dimension `dim` when it can be the channel axis."""
    if dim < 0:
        return -1 - dim
    rank = ctx.rank(source)
    return None if rank is None else rank - 1 - dim


def select_channels(
    source: fx.Node,
    axes: Sequence[Axis],
    picked: Sequence[int],
    total: int,
    owners: tuple[str, ...] = (),
    cost: int = 0,
) -> Lifted:
    """These channels of a value; `cost` is 1 where they are copied."""
    rows = len(picked)
    weight = dirac_kernel(rows, [1] * len(axes), rows).reshape(rows, 1, *[1] * len(axes))
    kernel = Kernel(Channels.select(total, picked), tuple(axes), weight)
    return Affine(source, kernel.shape_only(), lambda: kernel, owners, paradigm="slice", cost=cost)


def getitem(node: fx.Node, ctx: Context) -> Lifted:
    """A slice of a value, or one piece of a chunk or split."""
    owner, key = node.args
    if not isinstance(owner, fx.Node) or owner.meta["const"]:
        return None
    if type(key) is int and owner.meta.get("kind") == "sequence":
        return _part(node, owner, key, ctx)
    if owner.meta.get("kind") not in ("tensor", "unknown"):
        return None
    keys = key if isinstance(key, tuple) else (key,)
    if len(keys) > 1 and keys[0] == slice(None) and all(k == slice(None) or k is Ellipsis for k in keys[2:]):
        picked = _picked(node, owner, keys[1], 1, ctx)
        if picked is not None:
            return picked
    if not all(isinstance(k, slice) or k is Ellipsis for k in keys):
        return None
    if any(isinstance(b, fx.Node) for k in keys if isinstance(k, slice) for b in (k.start, k.stop, k.step)):
        return None
    source = source_of(node, owner, ctx)
    return None if source is None else _slices(node, source, keys, ctx)


def _slices(node: fx.Node, source: fx.Node, keys: Sequence[Any], ctx: Context) -> Lifted:
    rank = ctx.rank(source)
    if rank is None or keys.count(Ellipsis) > 1:
        return None
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = [*keys[:at], *[slice(None)] * (rank - len(keys) + 1), *keys[at + 1 :]]
    keys = [*keys, *[slice(None)] * (rank - len(keys))]
    if len(keys) != rank or any(k != slice(None) for k in keys[: ctx.batch]):
        return None
    full = [k == slice(None) for k in keys]
    if all(full):
        return handed_on(node, node.args[0], ctx)
    n = ctx.axes(rank)
    axes = []
    for k in keys[rank - n :]:
        axis = _slice_axis(k)
        if axis is None:
            return Refusal(Code.DATA_DEPENDENT, "a slice whose length depends on the size of its input", (node.name,))
        axes.append(axis)
    if full[ctx.batch]:
        ones = torch.ones(1, 1, *[1] * n, dtype=torch.float64)
        return fixed(node, source, Kernel(None, tuple(axes), ones), paradigm="slice")
    total = ctx.channels(source, n)
    rows = [] if total is None else range(*keys[ctx.batch].indices(total))
    return select_channels(source, axes, rows, total, ()) if total is not None and len(rows) else None


def _picked(node: fx.Node, owner: Any, index: Any, dim: int, ctx: Context) -> Lifted:
    """Channels by a list of numbers or a constant tensor of them: a permutation, a repetition, a selection."""
    source = source_of(node, owner, ctx)
    behind = None if source is None else channels_behind(dim, source, ctx)
    total = None if source is None or behind is None else ctx.channels(source, behind)
    if isinstance(index, fx.Node) and index.meta["const"]:
        value = ctx.constant(index)
        whole = isinstance(value, torch.Tensor) and value.dim() == 1 and value.dtype in (torch.int64, torch.int32)
        held = whole and value.device.type != "meta"
        rows = decided("rows", (node, index), lambda: value.tolist() if held else None, None)
    else:
        rows = list(index) if isinstance(index, list) and all(type(i) is int for i in index) else None
    if source is None or behind is None or total is None or not rows:
        return None
    if not all(-total <= i < total for i in rows):
        return None
    return select_channels(source, (Axis(),) * behind, [i % total for i in rows], total, cone_of(ctx, index), 1)


def index_select(node: fx.Node, ctx: Context) -> Lifted:
    """``index_select`` of channels by a constant."""
    given = arguments(node, ("input", "dim", "index"), {})
    if given is None or type(given.get("dim")) is not int or not isinstance(given.get("index"), fx.Node):
        return None
    return _picked(node, given["input"], given["index"], given["dim"], ctx)


def narrow(node: fx.Node, ctx: Context) -> Lifted:
    """``narrow`` of the channels."""
    given = arguments(node, ("input", "dim", "start", "length"), {})
    if given is None or not all(type(given.get(k)) is int for k in ("dim", "start", "length")):
        return None
    source = source_of(node, given["input"], ctx)
    behind = None if source is None else channels_behind(given["dim"], source, ctx)
    total = None if source is None or behind is None else ctx.channels(source, behind)
    if source is None or behind is None or total is None or not 0 < given["length"] <= total:
        return None
    start = given["start"] % total
    rows = range(start, start + given["length"])
    return select_channels(source, (Axis(),) * behind, rows, total) if rows.stop <= total else None


def _slice_axis(key: slice) -> Axis | None:
    start, stop, step = key.start or 0, key.stop, key.step or 1
    if (
        not all(type(v) is int for v in (start, step))
        or start < 0
        or step < 1
        or (stop is not None and (type(stop) is not int or stop >= 0))
    ):
        return None
    return Axis(1, step, 1, -start, stop or 0)


def _part(node: fx.Node, owner: fx.Node, index: int, ctx: Context) -> Lifted:
    """One piece of a chunk or split along the channels."""
    name = name_of(owner)
    if name not in SPLITS or not isinstance(ctx.ops.get(owner), Pieces):
        return None
    if name == "chunk":
        given = arguments(owner, ("input", "chunks", "dim"), {"dim": 0})
    elif name == "tensor_split":
        given = arguments(owner, ("input", "indices_or_sections", "dim"), {"dim": 0})
    else:
        given = arguments(owner, ("input", "split_size_or_sections", "dim"), {"dim": 0})
        if given is None:
            given = arguments(owner, ("input", "split_sizes", "dim"), {"dim": 0})
            given = None if given is None else {**given, "split_size_or_sections": given["split_sizes"]}
    if given is None or type(given["dim"]) is not int:
        return None
    source = source_of(owner, given["input"], ctx)
    if source is None or ctx.read(node, owner) is not owner:
        return None
    behind = channels_behind(given["dim"], source, ctx)
    if behind is None:
        return None
    total = ctx.channels(source, behind)
    sections = given.get("split_size_or_sections")
    if total is None and isinstance(sections, (list, tuple)) and all(type(s) is int for s in sections):
        total = sum(sections)  # anything else raises
    if total is None and name == "chunk" and type(given["chunks"]) is int:
        total = _read_by(owner, given["chunks"], behind, ctx)
    if total is None:
        wide = ctx.expected(node, behind) is not None
        return Refusal(Code.CHANNELS, "how many channels are split is not known", (node.name,)) if wide else None
    sizes = _piece_sizes(name, given, total)
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    start = sum(sizes[:index])
    rows = range(start, start + sizes[index])
    lifted = select_channels(source, (Axis(),) * behind, rows, total) if rows else None
    return replace(lifted, via=owner) if isinstance(lifted, Affine) else None


def pieces(node: fx.Node, ctx: Context) -> Lifted:
    """A value cut into pieces."""
    source = source_of(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)
    return None if source is None else Pieces(source)


def _read_by(owner: fx.Node, count: int, behind: int, ctx: Context) -> int | None:
    """The channels of a value that is cut into so many pieces, each of which is read by a layer."""
    widths: dict[int, int] = {}
    for piece in owner.users:
        width = ctx.expected(piece, behind) if name_of(piece) == "getitem" else None
        index = piece.args[1] if width is not None else None
        if width is not None and type(index) is int and widths.setdefault(index % count, width) != width:
            return None
    total = sum(widths.values())
    known = [widths.get(i, 0) for i in range(count)]
    return total if _piece_sizes("chunk", {"chunks": count}, total) == known else None


def _piece_sizes(name: str, given: dict[str, Any], total: int) -> list[int] | None:
    if name == "chunk":
        if type(given["chunks"]) is not int:
            return None
        each = -(-total // given["chunks"])
    elif name == "tensor_split":
        return _uneven_sizes(given["indices_or_sections"], total)
    else:
        sections = given["split_size_or_sections"]
        if isinstance(sections, (list, tuple)):
            return list(sections) if all(type(s) is int for s in sections) and sum(sections) == total else None
        if type(sections) is not int:
            return None
        each = sections
    if each <= 0:
        return None  # no channels, or pieces of none
    return [min(each, total - i) for i in range(0, total, each)]


def _uneven_sizes(sections: Any, total: int) -> list[int] | None:
    """Sizes of the pieces of `tensor_split`: so many, the first ones larger by one, or cut at these places."""
    if type(sections) is int:
        return [total // sections + (i < total % sections) for i in range(sections)]
    if not isinstance(sections, (list, tuple)) or not all(type(s) is int and 0 <= s <= total for s in sections):
        return None
    cuts = [0, *sections, total]
    return [b - a for a, b in pairwise(cuts)] if sorted(cuts) == cuts else None


def _unshuffle(node: fx.Node, source: Any, factor: Any, ctx: Context) -> Lifted:
    """Space to depth: a strided convolution that picks one position for each output channel."""
    read = source_of(node, source, ctx)
    channels = None if read is None else ctx.channels(read, 2)
    if read is None or channels is None or type(factor) is not int:
        return None
    rows = channels * factor * factor
    weight = torch.eye(factor * factor, dtype=torch.float64).reshape(-1, 1, factor, factor).repeat(channels, 1, 1, 1)
    axis = Axis(factor, factor, 1, 0, factor - 1)  # the size is a multiple of the factor, or the original raises
    kernel = Kernel(Channels.select(channels, [o // factor**2 for o in range(rows)]), (axis, axis), weight)
    return fixed(node, read, kernel, paradigm="slice", cost=1)


def unshuffle_function(node: fx.Node, ctx: Context) -> Lifted:
    """``pixel_unshuffle``."""
    given = arguments(node, ("input", "downscale_factor"), {})
    return None if given is None else _unshuffle(node, given["input"], given.get("downscale_factor"), ctx)


def unshuffle_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """``nn.PixelUnshuffle``."""
    return owned(_unshuffle(node, node.args[0], module.downscale_factor, ctx), node)
