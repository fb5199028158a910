"""ATen's operators under the names and arguments by which `lift` reads them; all others are read as they are."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.nn import functional as F

Called = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def in_terms_of_torch(node: fx.Node) -> Called:
    """The function of torch that an ATen operator is, with the node's own arguments.

    Args:
        node: a node whose target is an operator; its values know their fakes.
    """
    assert isinstance(node.target, OpOverload)
    handler = _OPERATORS.get(str(node.target.overloadpacket).removeprefix("aten."))
    made = handler(node) if handler is not None and node.target.namespace == "aten" else None
    return made or (node.target, node.args, dict(node.kwargs))


def gives_first_alone(node: fx.Node) -> bool:
    """Whether an operator gives several values, of which the first is the function's and nobody reads the others."""
    return (
        isinstance(node.target, OpOverload)
        and len(node.target._schema.returns) > 1
        and in_terms_of_torch(node)[0] is not node.target
        and all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
    )


def _given(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator by name, its defaults among them."""
    assert isinstance(node.target, OpOverload)
    schema = node.target._schema.arguments
    out = {a.name: a.default_value for a in schema if a.has_default_value()}
    out.update(zip((a.name for a in schema), node.args, strict=False))
    return {**out, **node.kwargs}


def _norm(node: fx.Node) -> Called | None:
    given = _given(node)
    if given.get("training", False) is not False:
        return None
    order = ("input", "weight", "bias", "running_mean", "running_var")
    moments = (given["running_mean"], given["running_var"])
    if any(m is None for m in moments):
        return None
    numbers = (given.get("momentum", 0.1), given.get("eps", given.get("epsilon")))
    return torch.batch_norm, (*(given[k] for k in order), False, *numbers, False), {}


def _slice(node: fx.Node) -> Called | None:
    given = _given(node)
    limits = tuple(given.get(k) for k in ("start", "end", "step"))
    if any(v is not None and type(v) is not int for v in limits):
        return None
    start, end, step = (None if v == sys.maxsize else v for v in limits)
    return _indexed(node, given, slice(start or None, end, None if step == 1 else step))


def _select(node: fx.Node) -> Called | None:
    given = _given(node)
    return _indexed(node, given, given["index"]) if type(given["index"]) is int else None


def _indexed(node: fx.Node, given: dict[str, Any], key: Any) -> Called | None:
    """An index along one axis as the key of an item."""
    source = given.get("self", given.get("input"))
    rank = getattr(source.meta.get("val"), "ndim", None) if isinstance(source, fx.Node) else None
    if rank is None or type(given["dim"]) is not int:
        return None
    return operator.getitem, (source, (*[slice(None)] * (given["dim"] % rank), key)), {}


def _constant_pad(node: fx.Node) -> Called:
    given = _given(node)
    return F.pad, (given["self"], list(given["pad"]), "constant", given.get("value", 0)), {}


def _pad(mode: str) -> Callable[[fx.Node], Called]:
    def made(node: fx.Node) -> Called:
        given = _given(node)
        return F.pad, (given["self"], list(given["padding"]), mode), {}

    return made


def _resampled(mode: str, antialias: bool = False) -> Callable[[fx.Node], Called | None]:
    """Resampling to a size, or by factors, from which the size follows."""

    def made(node: fx.Node) -> Called | None:
        given = _given(node)
        source, size = given.get("self", given.get("input")), given.get("output_size")
        told = [v for k, v in given.items() if k in ("scales", "scales_d", "scales_h", "scales_w")]
        factors = list(given.get("scale_factors") or (told if any(v is not None for v in told) else []))
        if factors and size is not None and not _is_shape(node, size):
            return None
        rank = getattr(source.meta.get("val"), "ndim", None) if isinstance(source, fx.Node) else None
        if rank is None or (factors and not (len(factors) == rank - 2 and all(map(_is_number, factors)))):
            return None
        args = (source, None if factors else size, factors or None, mode, given.get("align_corners"))
        return F.interpolate, (*args, None, True) if antialias else args, {}

    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_shape(node: fx.Node, size: Any) -> bool:
    """Whether a size that an operator is told, beside factors, is that of what it gives."""
    return list(node.meta["val"].shape[2:]) == list(size)


def _under(function: Callable[..., Any], *names: str) -> Callable[[fx.Node], Called]:
    """An operator that is a function of torch with other arguments, or with more results."""
    return lambda node: (function, tuple(given[n] for given in [_given(node)] for n in names), {})


_POOLED = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_NORMS = (
    "batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training", "_batch_norm_no_update",
)  # fmt: skip
_PADS = {"reflection_pad": "reflect", "replication_pad": "replicate"}
_MODES = {
    **{f"upsample_nearest{n}d": "nearest" for n in (1, 2, 3)},
    **{f"_upsample_nearest_exact{n}d": "nearest-exact" for n in (1, 2, 3)},
    "upsample_linear1d": "linear", "upsample_bilinear2d": "bilinear", "upsample_bicubic2d": "bicubic",
    "upsample_trilinear3d": "trilinear",
}  # fmt: skip
_OPERATORS: dict[str, Callable[[fx.Node], Called | None]] = {
    **dict.fromkeys(_NORMS, _norm),
    "slice": _slice,
    "select": _select,
    "constant_pad_nd": _constant_pad,
    **{name: _resampled(mode) for name, mode in _MODES.items()},
    **{f"_upsample_{mode}2d_aa": _resampled(mode, True) for mode in ("bilinear", "bicubic")},
    **{f"max_pool{n}d_with_indices": _under(getattr(F, f"max_pool{n}d"), *_POOLED) for n in (2, 3)},
    **{f"adaptive_max_pool{n}d": _under(getattr(F, f"adaptive_max_pool{n}d"), "self", "output_size")
       for n in (1, 2, 3)},
    **{f"_adaptive_avg_pool{n}d": _under(getattr(F, f"adaptive_avg_pool{n}d"), "self", "output_size") for n in (2, 3)},
    "native_layer_norm": _under(F.layer_norm, "input", "normalized_shape", "weight", "bias", "eps"),
    "native_group_norm": _under(F.group_norm, "input", "group", "weight", "bias", "eps"),
    **{f"{name}{n}d": _pad(mode) for name, mode in _PADS.items() for n in (1, 2, 3)},
}  # fmt: skip
