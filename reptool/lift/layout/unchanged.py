"""Operations that give back what they are given, by the values they hold.

A piecewise linear function with the slopes and bounds

::

    f(x) = x  for lower <= x <= upper,    slope x  for x < 0

is the identity where its slope is one and its bounds are infinite; a shrinkage by zero takes nothing away; a window of
one position moved by one reads what it writes. What holds such values (by pruning, at the end of a training that
linearizes its activations, by a setting) is no obstacle between two layers. Anything else is not read here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from reptool.ir.decisions import decided
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.lift.reading import Context, Lifted, cone_of, handed_on, is_number, owned

Given = Mapping[str, Any]


def _all(value: Any, number: float) -> bool:
    """Whether a number, a tuple of numbers or every element of a tensor is exactly this one."""
    if isinstance(value, Tensor):
        return value.device.type != "meta" and value.numel() > 0 and bool((value == number).all())
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_all(v, number) for v in value)
    return is_number(value) and value == number


def _unbounded(low: Any, high: Any) -> bool:
    return (low is None or _all(low, -inf)) and (high is None or _all(high, inf))


def _window_of_one(given: Given) -> bool:
    stride = given["stride"]
    moved = stride in (None, ()) or _all(stride, 1)
    plain = _all(given["padding"], 0) and given["return_indices"] is False
    return _all(given["kernel_size"], 1) and moved and plain


def _same_size(given: Given) -> bool:
    return given["size"] is None and _all(given["scale_factor"], 1)


def _mean_slope(given: Given) -> bool:
    ends = (given["lower"], given["upper"])
    return given["training"] is False and all(map(is_number, ends)) and sum(ends) / 2 == 1


Law = tuple[Callable[..., Any], Callable[[Given], bool]]
"""A function, whose arguments have the names of its signature, and when it is the identity."""
_POOLS: dict[str, Law] = {f"max_pool{n}d": (getattr(F, f"_max_pool{n}d"), _window_of_one) for n in (1, 2, 3)}
LAWS: dict[str, Law] = {
    "leaky_relu": (F.leaky_relu, lambda g: _all(g["negative_slope"], 1)),
    "prelu": (lambda input, weight: None, lambda g: _all(g["weight"], 1)),
    "rrelu": (F.rrelu, _mean_slope),
    "hardtanh": (F.hardtanh, lambda g: _unbounded(g["min_val"], g["max_val"])),
    "threshold": (F.threshold, lambda g: _all(g["threshold"], -inf)),
    "clamp": (lambda input, min=None, max=None: None, lambda g: _unbounded(g["min"], g["max"])),
    "hardshrink": (lambda input, lambd=0.5: None, lambda g: _all(g["lambd"], 0)),
    "softshrink": (lambda input, lambd=0.5: None, lambda g: _all(g["lambd"], 0)),
    "pow": (lambda input, exponent: None, lambda g: _all(g["exponent"], 1)),
    "interpolate": (F.interpolate, _same_size),
    **_POOLS,
}
LAWS |= {"clip": LAWS["clamp"], **{f"{k}_": v for k, v in LAWS.items() if "_pool" not in k and k != "interpolate"}}
_MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.LeakyReLU, "leaky_relu"), (nn.PReLU, "prelu"), (nn.RReLU, "rrelu"), (nn.Hardtanh, "hardtanh"),
    (nn.Threshold, "threshold"), (nn.Hardshrink, "hardshrink"), (nn.Softshrink, "softshrink"),
    (nn.Upsample, "interpolate"),
    (nn.MaxPool1d, "max_pool1d"), (nn.MaxPool2d, "max_pool2d"), (nn.MaxPool3d, "max_pool3d"),
)  # fmt: skip
CLASSES = tuple(c for c, _ in _MODULES)


def unchanged_function(node: fx.Node, ctx: Context) -> Lifted:
    """A function of these that changes nothing, by its arguments."""
    law = LAWS.get(name_of(node))
    if law is None:
        return None
    function, holds = law
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    first, *rest = bound.arguments.items()
    held = [v for _, v in rest if isinstance(v, fx.Node)]
    if any(not v.meta["const"] for v in held):
        return None
    given = {k: ctx.constant(v) if isinstance(v, fx.Node) else v for k, v in rest}
    if not decided("unchanged", (node,), lambda: holds(given), False) or (
        law is not LAWS["prelu"] and any(_reshapes(v, ctx) for v in held)
    ):
        return None
    lifted = handed_on(node, first[1], ctx)
    return Affine(lifted.source, lifted.shape, lifted.load, cone_of(ctx, *held)) if isinstance(lifted, Affine) else None


def _reshapes(constant: fx.Node, ctx: Context) -> bool:
    """Whether a constant may give the result another shape or dtype than the value has; a single number cannot."""
    value = ctx.constant(constant)
    return isinstance(value, Tensor) and value.dim() > 0


def unchanged_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A module of these that changes nothing, by what it holds."""
    name = next(n for c, n in _MODULES if isinstance(module, c))
    function, holds = LAWS[name]
    names = list(inspect.signature(function).parameters)[1:]
    given = {n: getattr(module, n, None) for n in names}
    same = decided("unchanged", (node,), lambda: holds(given), False)
    return owned(handed_on(node, node.args[0], ctx), node) if same else None
