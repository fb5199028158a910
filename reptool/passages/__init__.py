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

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from reptool.algebra.kernel import Border, Kernel
from reptool.ir.decisions import decided
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Op, View
from reptool.lift.reading import Context, source_of
from reptool.passages.arrangements import flatten, flattened, indexed, moved, squeezed, unsqueezed
from reptool.passages.passage import Passage as Passage
from reptool.passages.poolings import (
    average_module,
    pool_function,
    pool_module,
    reduced,
    resample,
    resample_module,
    shuffle,
    shuffled,
)  # fmt: skip
from reptool.passages.views import viewed

ANY = {n: n for n in range(4)}
UNIT = 1e-12
"""Weights add up to one if they do so up to this."""


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


def crossed(node: fx.Node, op: Op | None) -> Passage | None:
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
    keeps = Border.ZEROS not in borders and decided("adds to one", (node,), lambda: _adds_to_one(op.load()), False)
    return Passage(op.source, moves, shifts=keeps)


def _adds_to_one(kernel: Kernel) -> bool:
    return kernel.weight is not None and not kernel.weight.is_meta and abs(float(kernel.weight.sum()) - 1) < UNIT


_MODULES: tuple[tuple[Any, Callable[[Any, fx.Node, Context], Passage | None]], ...] = (
    (tuple(getattr(nn, f"{k}MaxPool{n}d") for k in ("", "Adaptive") for n in (1, 2, 3)), pool_module(True)),
    (tuple(getattr(nn, f"AdaptiveAvgPool{n}d") for n in (1, 2, 3)), pool_module(False)),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), average_module),
    (nn.Upsample, resample_module),
    (nn.PixelShuffle, lambda m, s, ctx: shuffled(s, m.upscale_factor)),
    (nn.Flatten, lambda m, s, ctx: flattened(s, m.start_dim, m.end_dim, ctx)),
)
_FUNCTIONS: dict[str, Callable[[fx.Node, Context], Passage | None]] = {
    **{f"{k}max_pool{n}d": pool_function(n, True) for k in ("", "adaptive_") for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": pool_function(n, False) for n in (1, 2, 3)},
    **{f"avg_pool{n}d": pool_function(n, False, True) for n in (1, 2, 3)},
    "interpolate": resample,
    "pixel_shuffle": shuffle,
    "mean": reduced(False, True),
    "sum": reduced(False, False),
    "amax": reduced(True, True),
    "amin": reduced(True, True),
    "flatten": flatten,
    "view": viewed,
    "reshape": viewed,
    "squeeze": squeezed,
    "unsqueeze": unsqueezed,
    "getitem": indexed,
    "flip": moved("flip"),
    "roll": moved("roll"),
}
