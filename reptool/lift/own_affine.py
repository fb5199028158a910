"""The scale and shift of norms that normalize by the values they are given, as a map behind the norm.

``LayerNorm(x) = gamma * n(x) + beta``, where ``n`` holds no constants: what follows `n` is one scale and one shift for
each channel, which every linear map that reads it may take. `n` itself is no map of `x` and stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool._nodes import name_of
from reptool._weights import exact_tensors, has_weight_property
from reptool.kernel import Kernel
from reptool.lift.constants import along_channels
from reptool.lift.reading import Context, cone_of, exact_pair
from reptool.module_kinds import stock_forward
from reptool.ops import Affine
from reptool.refusal import Code, Refusal

_BY_GROUP = (nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_MODULES = (nn.LayerNorm, nn.RMSNorm, *_BY_GROUP)
_PLACES = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "instance_norm": ("input", "weight", "bias", "running_mean", "running_var"),
}
_OF_FUNCTIONAL = {nn.functional.instance_norm: ("input", "running_mean", "running_var", "weight", "bias")}
"""Where functions take their input, and what they scale and shift by."""
TENSORS = ("weight", "bias")
Values = Callable[[], tuple[Tensor | None, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Bare:
    """A norm without its scale and shift.

    Args:
        op: the scale and shift, as a map of what the norm gives.
        module: whether a module is called, which loses them; else the call does.
        args: arguments of the call without them.
        kwargs: the same by name.
    """

    op: Affine
    module: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def own_affine(node: fx.Node, ctx: Context) -> Bare | Refusal | None:
    """The scale and shift of a norm; why they are no map of each channel; None where there are none."""
    if node.op == "call_module":
        return _of_module(node, ctx)
    if node.op == "call_function" and name_of(node) in _PLACES:
        return _of_function(node, ctx)
    return None


def _of_module(node: fx.Node, ctx: Context) -> Bare | Refusal | None:
    module = node.meta.get("module")
    if not isinstance(module, _MODULES) or node.meta.get("kind") == "unknown" or not stock_forward(module):
        return None
    if has_weight_property(module) or isinstance(module, torch.jit.ScriptModule):
        return None
    if getattr(module, "running_mean", None) is not None:
        return None
    with torch.no_grad():
        held = [getattr(module, n, None) for n in TENSORS]
    second = isinstance(module, _BY_GROUP)

    def values() -> tuple[Tensor | None, Tensor | None]:
        weight, bias = exact_tensors(module, *TENSORS)
        return weight, bias

    made = _map(node, held, values, second, _axes_of(module), (str(node.target),), ctx)
    return made if made is None or isinstance(made, Refusal) else Bare(made, True, node.args, node.kwargs)


def _axes_of(module: nn.Module) -> int | None:
    """How many axes a module has behind its channels, where its class tells."""
    kinds = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
    return next((i + 1 for i, kind in enumerate(kinds) if isinstance(module, kind)), None)


def _of_function(node: fx.Node, ctx: Context) -> Bare | Refusal | None:
    name = name_of(node)
    places = next((p for f, p in _OF_FUNCTIONAL.items() if f is node.target), _PLACES[name])
    given = {**dict(zip(places, node.args, strict=False)), **{k: v for k, v in node.kwargs.items() if k in places}}
    if given.get("running_mean") is not None:
        return None
    held = [given.get(n) for n in TENSORS]
    if any(h is not None and not (isinstance(h, fx.Node) and h.meta["const"]) for h in held):
        return Refusal(Code.DATA_WEIGHT, "they are computed from data at every call")
    weight, bias = held
    native = [ctx.constant(h) if isinstance(h, fx.Node) else None for h in held]
    if any(n is None for n, h in zip(native, held, strict=True) if h is not None):
        return None

    def values() -> tuple[Tensor | None, Tensor | None]:
        return exact_pair(ctx, weight, bias) if weight is not None else (None, ctx.exact(bias))  # type: ignore[arg-type]

    made = _map(node, native, values, name in ("group_norm", "instance_norm"), None, cone_of(ctx, *held), ctx)
    if made is None or isinstance(made, Refusal):
        return made
    args = tuple(None if p in TENSORS else a for p, a in zip(places, node.args, strict=False))
    kwargs = {k: None if k in TENSORS else v for k, v in node.kwargs.items()}
    return Bare(made, False, args + node.args[len(places) :], kwargs)


def _map(
    node: fx.Node, held: list[Any], values: Values, channels: bool, axes: int | None, owners: tuple[str, ...],
    ctx: Context,
) -> Affine | Refusal | None:  # fmt: skip
    """The map of a norm's result; `channels` tells that the constants lie along the second axis."""
    tensors = [h for h in held if isinstance(h, Tensor)]
    if not tensors:
        return None
    dtype = ctx.dtype(node)
    if dtype is not None and any(t.dtype != dtype for t in tensors):
        return Refusal(Code.DTYPE, f"constants of {tensors[0].dtype} on a value of {dtype}")
    guard = None
    behind: tuple[int, ...] = ()
    if channels:
        rank = ctx.rank(node)
        if axes is None and rank is None:
            return Refusal(Code.RANK_UNKNOWN, "how many axes the norm has behind its channels is not known")
        count = axes if axes is not None else (rank or 2) - 2
        behind = (1,) * count
        guard = 2 if axes is None and count == 0 and ctx.stated(node) is None else None
    arranged = [t.reshape(-1, *behind) if channels else t for t in tensors]
    found = along_channels(arranged[0], arranged[0], node, ctx)
    if found is None or isinstance(found, Refusal):
        return found
    shape = found[0]
    pick = (len(tensors[0].reshape(-1)), 1, *[1] * len(shape.axes or ()))

    def load() -> Kernel:
        scale, shift = values()
        some = scale if scale is not None else shift
        assert some is not None
        weight = (torch.ones_like(some) if scale is None else scale).reshape(pick)
        return Kernel(
            shape.channels, shape.axes, weight, None if shift is None else shift.reshape(-1), shift is not None
        )

    kernel = Kernel(shape.channels, shape.axes, biased=isinstance(held[1], Tensor))
    return Affine(node, kernel.shape_only(), load, owners, paradigm="scale", cost=1, rank_guard=guard)
