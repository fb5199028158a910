"""Channels in another order, or several times: ``flip``, ``roll``, ``repeat``, ``repeat_interleave``, shuffles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from reptool.algebra.kernel import Axis
from reptool.lift.layout.slices import channels_behind, select_channels
from reptool.lift.reading import Context, Lifted, arguments, owned, source_of


def _ordered(node: fx.Node, given: Any, dim: Any, ctx: Context, order: Callable[[int], Sequence[int]]) -> Lifted:
    """The channels of a value, dimension `dim` of it, as `order` arranges so many."""
    source = source_of(node, given, ctx)
    if source is None or type(dim) is not int:
        return None
    rank = ctx.rank(source)
    behind = channels_behind(dim, source, ctx)
    if rank is None or behind is None or (behind > 0 and behind != ctx.axes(rank)) or behind == rank - ctx.batch:
        return None
    total = ctx.channels(source, behind)
    rows = [] if total is None else order(total)
    return select_channels(source, (Axis(),) * behind, rows, total, (), 1) if total is not None and rows else None


def _one(value: Any) -> Any:
    """The number of a sequence of one."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value


def _spread(node: fx.Node, count: int) -> list[Any]:
    """Arguments of a method that takes numbers or one sequence of them, behind the value."""
    rest = list(node.args[1:])
    return list(rest[0]) if len(rest) == count and isinstance(rest[0], (tuple, list)) else rest


def flip(node: fx.Node, ctx: Context) -> Lifted:
    """``flip`` of the channels."""
    dims = node.kwargs.get("dims", _spread(node, 1))
    if set(node.kwargs) - {"dims"} or (node.kwargs and len(node.args) != 1) or not node.args:
        return None
    return _ordered(node, node.args[0], _one(dims), ctx, lambda n: range(n)[::-1])


def roll(node: fx.Node, ctx: Context) -> Lifted:
    """``roll`` along the channels."""
    given = arguments(node, ("input", "shifts", "dims"), {"dims": None})
    by = None if given is None else _one(given.get("shifts"))
    if given is None or type(by) is not int:
        return None
    return _ordered(node, given["input"], _one(given["dims"]), ctx, lambda n: [(i - by) % n for i in range(n)])


def repeat(node: fx.Node, ctx: Context) -> Lifted:
    """``repeat`` along the channels alone."""
    times = _spread(node, 1)
    source = source_of(node, node.args[0], ctx) if node.args and not node.kwargs else None
    if source is None or not all(type(t) is int and t > 0 for t in times) or ctx.rank(source) != len(times):
        return None
    several = [i for i, t in enumerate(times) if t != 1]
    if several != [1]:
        return None
    return _ordered(node, node.args[0], 1, ctx, lambda n: [*range(n)] * times[1])


def repeat_interleave(node: fx.Node, ctx: Context) -> Lifted:
    """``repeat_interleave`` of every channel as often."""
    given = arguments(node, ("input", "repeats", "dim"), {})
    if given is None or type(given.get("repeats")) is not int or given["repeats"] < 1:
        return None
    times = given["repeats"]
    return _ordered(node, given["input"], given.get("dim"), ctx, lambda n: [i // times for i in range(n * times)])


def _shuffled(node: fx.Node, source: Any, groups: Any, ctx: Context) -> Lifted:
    if type(groups) is not int or groups < 1:
        return None

    def order(n: int) -> Sequence[int]:
        return [] if n % groups else [i % groups * (n // groups) + i // groups for i in range(n)]

    return _ordered(node, source, 1, ctx, order)


def shuffle_function(node: fx.Node, ctx: Context) -> Lifted:
    """``channel_shuffle``."""
    given = arguments(node, ("input", "groups"), {})
    return None if given is None else _shuffled(node, given.get("input"), given.get("groups"), ctx)


def shuffle_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """``nn.ChannelShuffle``."""
    return owned(_shuffled(node, node.args[0], module.groups, ctx), node)
