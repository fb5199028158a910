"""Poolings, resampling and reductions along the positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from reptool.lift.reading import Context, arguments, source_of
from reptool.passages.passage import Passage, left_axes


def _at(axes: int) -> dict[int, int]:
    return {axes: axes}


def _averages(given: Mapping[str, Any]) -> bool:
    """Whether an average pooling keeps constants: every window is divided by what it sees of the image."""
    padding = given["padding"] if isinstance(given["padding"], (tuple, list)) else (given["padding"],)
    return given["divisor_override"] is None and not (any(padding) and given["count_include_pad"])


_POOLING = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_POOLED = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def pool_function(axes: int, positive: bool, averages: bool = False) -> Callable[[fx.Node, Context], Passage | None]:
    """A pooling as a function: of so many axes, of largest values, an average."""

    def read(node: fx.Node, ctx: Context) -> Passage | None:
        source = source_of(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)
        if source is None or node.kwargs.get("return_indices", False) is not False:
            return None
        given = arguments(node, _POOLING, _POOLED) if averages else {}
        if given is None or any(isinstance(v, fx.Node) for k, v in given.items() if k != "input"):
            return None
        return Passage(source, _at(axes), positive, not averages or _averages(given))

    return read


def pool_module(positive: bool) -> Callable[[Any, fx.Node, Context], Passage | None]:
    """A pooling of torch.nn."""

    def read(module: Any, source: fx.Node, ctx: Context) -> Passage | None:
        if getattr(module, "return_indices", False):
            return None
        axes = _axes_of(module)
        return None if axes is None else Passage(source, _at(axes), positive)

    return read


def _axes_of(module: nn.Module) -> int | None:
    """The axes of a pooling of torch, by the name of its class."""
    known = (c.__name__ for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.pooling"))
    return next((int(name[-2]) for name in known if name[-1] == "d" and name[-2].isdigit()), None)


def average_module(module: Any, source: fx.Node, ctx: Context) -> Passage | None:
    """An average pooling of torch.nn."""
    given = {k: getattr(module, k, v) for k, v in _POOLED.items()}
    axes = _axes_of(module)
    return None if axes is None else Passage(source, _at(axes), shifts=_averages(given))


def _second(source: fx.Node, ctx: Context) -> dict[int, int] | None:
    """The channels as the second axis of a value of known rank."""
    rank = ctx.rank(source)
    return None if rank is None or rank < 3 else _at(rank - 2)


def resample(node: fx.Node, ctx: Context) -> Passage | None:
    """``interpolate``."""
    source = source_of(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)
    moves = None if source is None else _second(source, ctx)
    return None if source is None or moves is None else Passage(source, moves)


def resample_module(module: Any, source: fx.Node, ctx: Context) -> Passage | None:
    """``nn.Upsample``."""
    moves = _second(source, ctx)
    return None if moves is None else Passage(source, moves)


def shuffled(source: fx.Node | None, factor: Any) -> Passage | None:
    """A pixel shuffle by a factor."""
    return None if source is None or type(factor) is not int else Passage(source, _at(2), blocks=factor * factor)


def shuffle(node: fx.Node, ctx: Context) -> Passage | None:
    """``pixel_shuffle``."""
    given = arguments(node, ("input", "upscale_factor"), {})
    return None if given is None else shuffled(source_of(node, given.get("input"), ctx), given.get("upscale_factor"))


def reduced(positive: bool, shifts: bool) -> Callable[[fx.Node, Context], Passage | None]:
    """A reduction along stated axes."""

    def read(node: fx.Node, ctx: Context) -> Passage | None:
        given = arguments(node, ("input", "dim", "keepdim", "dtype"), {"keepdim": False, "dtype": None})
        if given is None or given["dtype"] is not None or type(given["keepdim"]) is not bool:
            return None
        source = source_of(node, given.get("input"), ctx)
        rank = None if source is None else ctx.rank(source)
        dims = given.get("dim")
        dims = (dims,) if type(dims) is int else dims
        if source is None or rank is None or not isinstance(dims, (tuple, list)) or not dims:
            return None
        if not all(type(d) is int and -rank <= d < rank for d in dims):
            return None
        gone = {d % rank for d in dims}
        moves = left_axes(rank, gone, given["keepdim"])
        return Passage(source, moves, positive, shifts, keeps_rank=given["keepdim"])

    return read
