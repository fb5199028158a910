"""Passages: operations that treat all channels alike, across which a scale and shift per channel moves.

::

    P(scale * y + shift)  =  scale * P(y) + shift

A passage is linear along the positions (resampling, means, arrangements of axes) or picks one of them by its order
(max pooling: for scales that are not negative). It keeps constants where the weights of every result add up to one,
whatever lies at its border; one that does not (a sum, zeros beyond the border that are counted) lets a scale across
and no shift. Where channels are made of several (pixel shuffle), or several of one (`flatten`), the numbers are
repeated as many times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from reptool._nodes import name_of
from reptool.kernel import Border, Kernel
from reptool.lift.reading import Context, arguments, ints, source_of
from reptool.lift.reshaped import sizes_of
from reptool.ops import Affine, Op, View

ANY = {n: n for n in range(4)}
UNIT = 1e-12
"""Weights add up to one if they do so up to this."""


@dataclass(frozen=True, eq=False)
class Passage:
    """An operation that treats all channels of `source` alike.

    Args:
        source: the value read.
        moves: where the channels go: axes behind them in the source -> axes behind them in the result.
        positive: whether scales must not be negative.
        shifts: whether constants are kept.
        blocks: channels of the source of which one channel of the result is made.
        joined: axes behind the channels in the source -> whether the positions joined with them come first.
        keeps_rank: whether the result has as many axes.
    """

    source: fx.Node
    moves: Mapping[int, int]
    positive: bool = False
    shifts: bool = True
    blocks: int = 1
    joined: Mapping[int, bool] = field(default_factory=dict)
    keeps_rank: bool = True


def passage(node: fx.Node, ctx: Context) -> Passage | None:
    """A node that is no map of its own as a passage, None where it is none."""
    if node.meta["const"] or "opaque" in node.meta:
        return None
    if node.op == "call_module":
        module = node.meta.get("module")
        read = next((f for classes, f in _MODULES if isinstance(module, classes)), None)
        if read is None or len(node.args) != 1 or node.kwargs or node.meta.get("kind") == "unknown":
            return None
        source = source_of(node, node.args[0], ctx)
        return None if source is None or module is None else read(module, source, ctx)
    if node.op in ("call_function", "call_method") and node.meta.get("kind") == "tensor":
        function = _FUNCTIONS.get(name_of(node))
        return None if function is None else function(node, ctx)
    return None


def crossed(op: Op | None) -> Passage | None:
    """An operation that is a map or view as a passage: the same on all channels, or an order of axes."""
    if isinstance(op, View):
        return Passage(op.source, op.moves) if op.moves else None
    if not isinstance(op, Affine) or op.layer or op.via is not None:
        return None
    shape = op.shape
    if shape.channels is not None or shape.biased or shape.transposed is not None:
        return None
    borders = {a.border for a in shape.axes or () if a.reads_outside}
    if borders & {Border.CONSTANT, Border.UNKNOWN} or any(a.border is Border.UNKNOWN for a in shape.axes or ()):
        return None
    moves = ANY if shape.axes is None else {len(shape.axes): len(shape.axes)}
    return Passage(op.source, moves, shifts=Border.ZEROS not in borders and _adds_to_one(op.load()))


def _adds_to_one(kernel: Kernel) -> bool:
    return kernel.weight is not None and abs(float(kernel.weight.sum()) - 1) < UNIT


# --- poolings and resampling ----------------------------------------------------------------------------------------
def _at(axes: int) -> dict[int, int]:
    return {axes: axes}


def _averages(given: Mapping[str, Any]) -> bool:
    """Whether an average pooling keeps constants: every window is divided by what it sees of the image."""
    padding = given["padding"] if isinstance(given["padding"], (tuple, list)) else (given["padding"],)
    return given["divisor_override"] is None and not (any(padding) and given["count_include_pad"])


_POOLING = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_POOLED = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def _pool_function(axes: int, positive: bool, averages: bool = False) -> Callable[[fx.Node, Context], Passage | None]:
    def read(node: fx.Node, ctx: Context) -> Passage | None:
        source = source_of(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)
        if source is None or node.kwargs.get("return_indices", False) is not False:
            return None
        given = arguments(node, _POOLING, _POOLED) if averages else {}
        if given is None or any(isinstance(v, fx.Node) for k, v in given.items() if k != "input"):
            return None
        return Passage(source, _at(axes), positive, not averages or _averages(given))

    return read


def _pool_module(positive: bool) -> Callable[[Any, fx.Node, Context], Passage | None]:
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


def _average_module(module: Any, source: fx.Node, ctx: Context) -> Passage | None:
    given = {k: getattr(module, k, v) for k, v in _POOLED.items()}
    axes = _axes_of(module)
    return None if axes is None else Passage(source, _at(axes), shifts=_averages(given))


def _second(source: fx.Node, ctx: Context) -> dict[int, int] | None:
    """The channels as the second axis of a value of known rank."""
    rank = ctx.rank(source)
    return None if rank is None or rank < 3 else _at(rank - 2)


def _resample(node: fx.Node, ctx: Context) -> Passage | None:
    source = source_of(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)
    moves = None if source is None else _second(source, ctx)
    return None if source is None or moves is None else Passage(source, moves)


def _resample_module(module: Any, source: fx.Node, ctx: Context) -> Passage | None:
    moves = _second(source, ctx)
    return None if moves is None else Passage(source, moves)


def _shuffled(source: fx.Node | None, factor: Any) -> Passage | None:
    return None if source is None or type(factor) is not int else Passage(source, _at(2), blocks=factor * factor)


def _shuffle(node: fx.Node, ctx: Context) -> Passage | None:
    given = arguments(node, ("input", "upscale_factor"), {})
    return None if given is None else _shuffled(source_of(node, given.get("input"), ctx), given.get("upscale_factor"))


# --- reductions -----------------------------------------------------------------------------------------------------
def _reduced(positive: bool, shifts: bool) -> Callable[[fx.Node, Context], Passage | None]:
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
        moves = _moves(rank, gone, given["keepdim"])
        return Passage(source, moves, positive, shifts, keeps_rank=given["keepdim"])

    return read


def _moves(rank: int, gone: set[int], kept: bool = False) -> dict[int, int]:
    """Where each axis that is not among these goes, once they have gone."""
    behind = {a: 0 if kept else sum(g > a for g in gone) for a in range(rank)}
    return {rank - 1 - a: rank - 1 - a - behind[a] for a in range(rank) if a not in gone}


# --- arrangements ---------------------------------------------------------------------------------------------------
def _joined(source: fx.Node, start: int, end: int, rank: int) -> Passage | None:
    """Axes `start` to `end` as one."""
    if not 0 <= start <= end < rank:
        return None
    moves = {rank - 1 - a: rank - 1 - a - (end - start if a < start else 0) for a in range(rank)}
    inside = dict.fromkeys(range(start, end + 1), rank - 1 - end)
    moves = {**moves, **{rank - 1 - a: b for a, b in inside.items() if a in (start, end)}}
    for a in range(start + 1, end):
        del moves[rank - 1 - a]
    joined = {rank - 1 - start: False, rank - 1 - end: True} if start != end else {}
    return Passage(source, moves, joined=joined, keeps_rank=start == end)


def _flattened(source: fx.Node | None, start: Any, end: Any, ctx: Context) -> Passage | None:
    rank = None if source is None else ctx.rank(source)
    if source is None or rank is None or type(start) is not int or type(end) is not int:
        return None
    return _joined(source, start % rank, end % rank, rank) if rank else None


def _flatten(node: fx.Node, ctx: Context) -> Passage | None:
    given = arguments(node, ("input", "start_dim", "end_dim"), {"start_dim": 0, "end_dim": -1})
    if given is None:
        return None
    return _flattened(source_of(node, given.get("input"), ctx), given["start_dim"], given["end_dim"], ctx)


def _viewed(node: fx.Node, ctx: Context) -> Passage | None:
    """A view that keeps the first sizes and joins what is behind them: the last one is what is left."""
    source = source_of(node, node.args[0], ctx) if node.args and not node.kwargs else None
    rank = None if source is None else ctx.rank(source)
    sizes = None if source is None else sizes_of(node, source, ctx)
    if source is None or rank is None or sizes is None or not 2 <= len(sizes) <= rank:
        return None
    *first, last = sizes
    kept = [s == ("size", i) or (i == 1 and s == ctx.channels(source, rank - 2)) for i, s in enumerate(first)]
    found = _joined(source, len(first), rank - 1, rank) if all(kept) and type(last) is int else None
    if found is None or len(first) < 2:
        return found
    second = {b: m for b, m in found.moves.items() if b == rank - 2}  # a number may be another axis's by chance
    return replace(found, moves=second)


def _squeezed(node: fx.Node, ctx: Context) -> Passage | None:
    """Axes of one position left out."""
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    rank = None if source is None else ctx.rank(source)
    dims = None if given is None else given.get("dim")
    dims = (dims,) if type(dims) is int else dims
    if source is None or rank is None or not isinstance(dims, (tuple, list)) or not dims:
        return None
    if not all(type(d) is int and -rank <= d < rank and _is_one(source, d % rank, rank) for d in dims):
        return None
    return Passage(source, _moves(rank, {d % rank for d in dims}), keeps_rank=False)


def _is_one(source: fx.Node, dim: int, rank: int) -> bool:
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
        return _is_one(before, rest[dim], whole)
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


def _unsqueezed(node: fx.Node, ctx: Context) -> Passage | None:
    given = arguments(node, ("input", "dim"), {})
    source = None if given is None else source_of(node, given.get("input"), ctx)
    rank, dim = (None if source is None else ctx.rank(source)), None if given is None else given.get("dim")
    if source is None or rank is None or type(dim) is not int or not -rank - 1 <= dim <= rank:
        return None
    at = dim % (rank + 1)
    moves = {rank - 1 - a: rank - 1 - a + (at > a) for a in range(rank)}
    return Passage(source, moves, keeps_rank=False)


def _indexed(node: fx.Node, ctx: Context) -> Passage | None:
    """An index of numbers, slices and new axes; the channels are an axis that is taken whole."""
    owner, key = node.args
    source = source_of(node, owner, ctx)
    rank = None if source is None else ctx.rank(source)
    if source is None or source.meta.get("kind") != "tensor":
        return None
    keys: Sequence[Any] = list(key) if isinstance(key, tuple) else [key]
    if rank is None or keys.count(Ellipsis) > 1:
        return None
    if not all(k is None or k is Ellipsis or type(k) is int or _plain(k) for k in keys):
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


def _moved(name: str) -> Callable[[fx.Node, Context], Passage | None]:
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
        return Passage(source, _moves(rank, {d % rank for d in dims}, True))

    return read


_MODULES: tuple[tuple[Any, Callable[[Any, fx.Node, Context], Passage | None]], ...] = (
    (tuple(getattr(nn, f"{k}MaxPool{n}d") for k in ("", "Adaptive") for n in (1, 2, 3)), _pool_module(True)),
    (tuple(getattr(nn, f"AdaptiveAvgPool{n}d") for n in (1, 2, 3)), _pool_module(False)),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_module),
    (nn.Upsample, _resample_module),
    (nn.PixelShuffle, lambda m, s, ctx: _shuffled(s, m.upscale_factor)),
    (nn.Flatten, lambda m, s, ctx: _flattened(s, m.start_dim, m.end_dim, ctx)),
)
_FUNCTIONS: dict[str, Callable[[fx.Node, Context], Passage | None]] = {
    **{f"{k}max_pool{n}d": _pool_function(n, True) for k in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _pool_function(n, False) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _pool_function(n, False, True) for n in (1, 2, 3)},
    "interpolate": _resample,
    "pixel_shuffle": _shuffle,
    "mean": _reduced(False, True),
    "sum": _reduced(False, False),
    "amax": _reduced(True, True),
    "amin": _reduced(True, True),
    "flatten": _flatten,
    "view": _viewed,
    "reshape": _viewed,
    "squeeze": _squeezed,
    "unsqueeze": _unsqueezed,
    "getitem": _indexed,
    "flip": _moved("flip"),
    "roll": _moved("roll"),
}
