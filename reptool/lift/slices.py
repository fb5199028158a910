"""Concatenations, slices and pieces of a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from reptool._nodes import name_of
from reptool.fusions.shortcut import dirac_kernel
from reptool.kernel import Axis, Channels, Kernel
from reptool.lift.reading import Context, Lifted, arguments, fixed, handed_on, owned, source_of, varies
from reptool.ops import Affine, Concat
from reptool.refusal import Code, Refusal


def cat(node: fx.Node, ctx: Context) -> Lifted:
    """A concatenation along the channels."""
    given = arguments(node, ("tensors", "dim"), {"dim": 0})
    if given is None:
        return None
    if "axis" in node.kwargs:
        return None
    parts = given["tensors"]
    if not isinstance(parts, (tuple, list)) or not all(varies(p) for p in parts) or type(given["dim"]) is not int:
        return None
    reads = [source_of(node, p, ctx) for p in parts]
    if any(r is None for r in reads) or not reads:
        return None
    sources = [r for r in reads if r is not None]
    behind = _behind(given["dim"], sources[0], ctx)
    return None if behind is None else Concat(sources, behind)


def _behind(dim: int, source: fx.Node, ctx: Context) -> int | None:
    """Axes behind dimension `dim` when it can be the channel axis."""
    if dim < 0:
        return -1 - dim
    rank = ctx.rank(source)
    return None if rank is None else rank - 1 - dim


def _select_channels(source: fx.Node, behind: int, start: int, stop: int, total: int) -> Lifted:
    channels = Channels.select(total, range(start, stop))
    weight = dirac_kernel(stop - start, [1] * behind, stop - start).reshape(stop - start, 1, *[1] * behind)
    kernel = Kernel(channels, (Axis(),) * behind, weight)
    return Affine(source, kernel.shape_only(), lambda: kernel, paradigm="slice")


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
    if len(keys) != rank or keys[0] != slice(None):
        return None
    full = [k == slice(None) for k in keys]
    if all(full):
        return handed_on(node, node.args[0], ctx)
    n = rank - 2
    kernels: list[Kernel] = []
    axes = []
    for k in keys[2:]:
        axis = _slice_axis(k)
        if axis is None:
            return Refusal(Code.DATA_DEPENDENT, "a slice whose length depends on the size of its input", (node.name,))
        axes.append(axis)
    if not all(full[2:]):
        kernels.append(Kernel(None, tuple(axes), torch.ones(1, 1, *[1] * n, dtype=torch.float64)))
    if full[1]:
        return fixed(node, source, kernels[0], paradigm="slice")
    if kernels:
        return None
    total = ctx.channels(source, n)
    if total is None or keys[1].step not in (None, 1):
        return None
    start, stop, _ = keys[1].indices(total)
    return _select_channels(source, n, start, stop, total) if stop > start else None


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
    if name not in ("chunk", "split", "tensor_split", "split_with_sizes"):
        return None
    if name == "chunk":
        given = arguments(owner, ("input", "chunks", "dim"), {"dim": 0})
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
    behind = _behind(given["dim"], source, ctx)
    if behind is None:
        return None
    total = ctx.channels(source, behind)
    sections = given.get("split_size_or_sections")
    if total is None and isinstance(sections, (list, tuple)) and all(type(s) is int for s in sections):
        total = sum(sections)  # anything else raises
    if total is None:
        return None
    sizes = _piece_sizes(name, given, total)
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    start = sum(sizes[:index])
    return _select_channels(source, behind, start, start + sizes[index], total)


def _piece_sizes(name: str, given: dict[str, Any], total: int) -> list[int] | None:
    if name == "chunk":
        if type(given["chunks"]) is not int:
            return None
        each = -(-total // given["chunks"])
    else:
        sections = given["split_size_or_sections"]
        if isinstance(sections, (list, tuple)):
            return (
                list(sections)
                if all(type(s) is int for s in sections) and sum(sections) == total and name != "tensor_split"
                else None
            )
        if type(sections) is not int or name == "tensor_split":
            return None
        each = sections
    return [min(each, total - i) for i in range(0, total, each)]


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
