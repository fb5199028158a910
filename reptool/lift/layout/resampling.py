"""Nearest upsampling by whole numbers: a transposed convolution whose stride and kernel are the factors, all ones.

Torch reads position ``floor(q * (1 / s))`` for output `q`, with ``1 / s`` rounded: that is ``q // s`` for every `q`
where ``s * round(1 / s)`` is not less than one by more than half the spacing of numbers below one. It is for all
factors up to forty; others are left. ``nearest-exact`` reads at the middle of a position and is exact for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import fx, nn

from reptool.algebra.kernel import identity
from reptool.algebra.resampling import Resampling
from reptool.algebra.side_by_side import repeating
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.lift.layout.orders import repeat_interleave
from reptool.lift.layout.unchanged import unchanged_function, unchanged_module
from reptool.lift.reading import Context, Lifted, arguments, fixed, is_number, owned, source_of
from reptool.refusal import Code, Refusal

_ARGUMENTS = list(inspect.signature(F.interpolate).parameters)[1:]
_NEAREST = ("nearest", "nearest-exact")


def upsample_function(node: fx.Node, ctx: Context) -> Lifted:
    """``interpolate``."""
    same = unchanged_function(node, ctx)
    if same is not None:
        return same
    defaults = {k: p.default for k, p in inspect.signature(F.interpolate).parameters.items() if k != "input"}
    given = arguments(node, ("input", *_ARGUMENTS), defaults)
    return None if given is None else _upsampled(node, given.pop("input", None), given, ctx)


def upsample_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """``nn.Upsample``."""
    same = unchanged_module(node, module, ctx)
    if same is not None:
        return same
    given = {**dict.fromkeys(_ARGUMENTS), **{k: getattr(module, k) for k in _ARGUMENTS if hasattr(module, k)}}
    return owned(_upsampled(node, node.args[0], given, ctx), node)


def repeated(node: fx.Node, ctx: Context) -> Lifted:
    """``repeat_interleave`` of the channels, or of the positions along one axis."""
    of_channels = repeat_interleave(node, ctx)
    given = arguments(node, ("input", "repeats", "dim"), {})
    if given is None or type(given.get("dim")) is not int:
        return of_channels
    source, times = source_of(node, given.get("input"), ctx), given.get("repeats")
    rank = None if source is None else ctx.rank(source)
    if source is None or rank is None or type(times) is not int or times < 1 or not 2 < rank + 1 - ctx.batch <= 5:
        return of_channels
    count = ctx.axes(rank)
    axis = given["dim"] % rank - 1 - ctx.batch
    sure = ctx.behind(source) == count or ctx.expected(node, count) is not None
    if axis < 0 or (of_channels is not None and not sure):  # the last axis may be that of the channels
        return of_channels
    return _repeating(node, source, [times if i == axis else 1 for i in range(count)])


def _upsampled(node: fx.Node, given: Any, settings: Mapping[str, Any], ctx: Context) -> Lifted:
    source = source_of(node, given, ctx)
    rank = None if source is None else ctx.rank(source)
    if source is None or rank is None or not 3 <= rank <= 5:
        return None
    factors = _factors(settings, rank - 2)
    moves = _resampling(settings)
    if not isinstance(factors, str):
        return _repeating(node, source, factors, moves)
    left = Refusal(Code.RESAMPLING, factors, (node.name,)) if ctx.expected(node, rank - 2) is not None else None
    if moves is None and told_size(node) is None:
        return left
    kernel = identity().with_axes(rank - 2)
    return fixed(node, source, kernel, paradigm="resample", cost=1, resampling=moves, moves=True, left=left)


def told_size(node: fx.Node) -> Any:
    """The size that a call of `interpolate` is told to give by nearest upsampling; None for anything else."""
    if node.op != "call_function" or name_of(node) != "interpolate":
        return None
    found = arguments(node, ("input", *_ARGUMENTS), dict.fromkeys(_ARGUMENTS))
    if found is None or found["mode"] not in (None, *_NEAREST) or found["size"] is None:
        return None
    plain = found["scale_factor"] is None and not (found["antialias"] or found["align_corners"])
    return found["size"] if plain and not found["recompute_scale_factor"] else None


def _resampling(settings: Mapping[str, Any]) -> Resampling | None:
    """What it does as a module; None where that depends on anything but the image."""
    if settings["antialias"] or settings["recompute_scale_factor"] not in (None, False):
        return None  # of which the module knows nothing
    given = {k: settings[k] for k in ("size", "scale_factor", "mode", "align_corners")}
    plain = {k: tuple(v) if isinstance(v, (tuple, list)) else v for k, v in given.items()}
    flat = [v for held in plain.values() for v in (held if isinstance(held, tuple) else (held,))]
    if not all(v is None or isinstance(v, (bool, str)) or is_number(v) for v in flat):
        return None
    return Resampling("Upsample", tuple((k, v) for k, v in plain.items() if v is not None))


def _repeating(
    node: fx.Node, source: fx.Node | None, factors: Sequence[int], moves: Resampling | None = None
) -> Lifted:  # fmt: skip
    """Every position as often as these factors say, axis by axis."""
    return fixed(node, source, repeating(factors), paradigm="upsample", resampling=moves)


def _factors(settings: Mapping[str, Any], axes: int) -> Sequence[int] | str:
    """How often each position is repeated, per axis, or why it is not."""
    mode, factor = settings["mode"], settings["scale_factor"]
    if mode not in _NEAREST:
        return f"resampling of mode {mode!r} mixes positions before the layer behind it reads them"
    if settings["antialias"] or settings["align_corners"] or settings["recompute_scale_factor"]:
        return "resampling with antialias, align_corners or recompute_scale_factor is not read"
    if settings["size"] is not None:
        return "it is told what size to give: by which factor it repeats positions depends on the size of its input"
    each = list(factor) if isinstance(factor, (tuple, list)) else [factor] * axes
    if len(each) != axes or not all(map(is_number, each)):
        return "the factors are not known"
    if not all(f >= 1 and f == int(f) for f in each):
        return f"factors {', '.join(f'{f:g}' for f in each)} do not repeat every position as often"
    whole = [int(f) for f in each]
    if mode == "nearest" and not all(map(repeats, whole)):
        return f"by factors of {', '.join(map(str, whole))} torch rounds to other positions"
    return whole


def factors_of(node: fx.Node, module: nn.Module | None) -> tuple[int, ...] | None:
    """By what a call of `interpolate`, or of a module that upsamples, repeats positions; None for anything else.

    Where one number is given for all axes, as many of it as there may be: three.
    """
    if module is not None:
        given = {**dict.fromkeys(_ARGUMENTS), **{k: getattr(module, k) for k in _ARGUMENTS if hasattr(module, k)}}
    else:
        found = arguments(node, ("input", *_ARGUMENTS), dict.fromkeys(_ARGUMENTS))
        given = {} if found is None else {**found, "mode": found["mode"] or "nearest"}
    factor = given.get("scale_factor")
    factors = _factors(given, len(factor) if isinstance(factor, (tuple, list)) else 3) if factor is not None else ""
    return None if isinstance(factors, str) else tuple(factors)


def repeats(factor: int) -> bool:
    """Whether nearest upsampling by a factor repeats every position so often, in float32 and float64.

    >>> [s for s in range(1, 60) if not repeats(s)]
    [41, 47, 49, 55]
    """
    for kind, digits in ((np.float32, 25), (np.float64, 54)):
        if 1 - factor * Fraction(float(kind(1.0 / factor))) > Fraction(1, 2**digits):
            return False
    return True


def is_resampling(op: object) -> bool:
    """Whether an operation repeats positions or resamples them otherwise, and is no kernel with a known border."""
    return isinstance(op, Affine) and (op.moves or op.paradigm == "upsample")
