"""Whether the modules of a region are where they were when it was fused, with no hook in between."""

from __future__ import annotations

import functools
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from reptool.runtime.gates.calls import kind_of
from reptool.runtime.gates.chain import KIND, WITHIN, Chain, Gate, Path
from reptool.runtime.gates.marker import GATE, Marker, names_read


def is_whole(lowest: nn.Module, chain: Chain, layer: nn.Module) -> bool:
    """Whether all that was absorbed into a layer is in its place, and nobody listens in between."""
    if not (has_slots(lowest, chain, layer) and are_written(lowest, chain)):
        return False
    for path in chain.absorbed:
        marker = inside(lowest, path)
        if not isinstance(marker, Marker) or are_strangers(marker, layer) or was_elsewhere(marker, path):
            return False
    return all(is_watched(lowest, path, count, chain) for path, count in chain.hooks)


def is_watched(lowest: nn.Module, path: Path, count: int, chain: Chain) -> bool:
    """Whether the module at a path is the one that was there, and has no hook more or less."""
    inner = inside(lowest, path)
    if inner is None or (chain.marked and not is_marked(inner, inner.__dict__)) or not runs_own_code(inner):
        return False
    return not hooks_differ(inner, count) and not drops_alone(lowest, inner)


def is_marked(inner: nn.Module, own: dict[str, Any]) -> bool:
    """Whether a module is the one whose values are inside of a region, and says what it said then.

    Args:
        inner: the module.
        own: its attributes. The mark is what they were and the name of its class, or True where they do not matter.
    """
    was = own.get(WITHIN)
    if was is True or was is None:
        return was is True
    return all(own.get(n) == v if n != KIND else kind_of(type(inner)) == v for n, v in was.items())


def drops_alone(lowest: nn.Module, inner: nn.Module) -> bool:
    """Whether a module whose values are inside of a region is in training mode while what runs the region is not."""
    return inner.training and not lowest.training and "training" in (names_read(type(inner)) or ())


def has_slots(lowest: nn.Module, chain: Chain, layer: nn.Module) -> bool:
    """Whether the fused layers that do the work of a layer's region are in their places."""
    found = (inside(lowest, path) for path in chain.slots)
    return all(m is not None and GATE in m.__dict__ and not are_strangers(m, layer) for m in found)


def are_strangers(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules are known to be of regions that have nothing in common: one was moved."""
    here, there = (m.__dict__.get(GATE) for m in (one, other))
    if here is None or there is None or not here.region or not there.region:
        return False
    return {here.name, *here.region}.isdisjoint((there.name, *there.region))


def was_elsewhere(marker: Marker, path: Path) -> bool:
    """Whether a marker was put into the place of another module than the one that it stands for."""
    gate = marker.__dict__.get(GATE)
    return gate is not None and tuple(gate.name.split(".")[-len(path) :]) != path


def are_written(lowest: nn.Module, chain: Chain) -> bool:
    """Whether the modules whose methods were written anew are in their places."""
    return all("_reptool_derived" in type(inside(lowest, path)).__dict__ for path in chain.written)


def is_shaped(layer: nn.Module, gate: Gate) -> bool:
    """Whether a layer has the window that it was fused with, and a norm that lost its scale has none again."""
    own = layer.__dict__
    if not runs_own_code(layer) or (gate.kind and kind_of(type(layer)) != gate.kind):
        return False
    if isinstance(layer, Marker) and hooks_differ(layer, 0):
        return False
    if gate.bare and any(layer._parameters.get(name) is not None for name in gate.bare):
        return False
    for name, value in gate.geometry:
        held = own.get(name)
        if held is not value and held != value:
            return False
    return True


def runs_other_methods(module: nn.Module, put: frozenset[str] | None) -> bool:
    """Whether methods were put on a module, in the place of those of its class, beside the ones that were there.

    Code of its own reads them, whose calls a gate does not see. Who runs a `forward`, the stack of calls tells.
    """
    return put is not None and not put_on(module) <= put


def put_on(module: nn.Module) -> frozenset[str]:
    """The methods of its class in whose place a module has something of its own that runs other code."""
    own, cls = module.__dict__, type(module)
    held = methods_of(cls).intersection(own)
    return frozenset(n for n in held if _function(own[n]) is not _function(getattr(cls, n)))


def methods_of(cls: Any) -> frozenset[str]:
    """The names of the user's methods in a class, but for `forward`."""
    return _methods_of(cls)


def _function(method: Any) -> Any:
    return getattr(method, "__func__", method)


@functools.lru_cache(maxsize=1024)
def _methods_of(cls: Any) -> frozenset[str]:
    own = (c for c in cls.__mro__ if c is not object and not c.__module__.startswith("torch."))
    kinds = (FunctionType, classmethod, staticmethod)
    return frozenset(n for c in own for n, v in vars(c).items() if isinstance(v, kinds)) - {"forward"}


def runs_own_code(layer: nn.Module) -> bool:
    """Whether a layer runs the forward of its class."""
    put = layer.__dict__.get("forward")
    return put is None or getattr(put, "__func__", None) is type(layer).forward


def is_watched_from_outside() -> bool:
    """Whether somebody else than torch hooked all modules there are."""
    hooks = (*_module._global_forward_hooks.values(), *_module._global_forward_pre_hooks.values())
    return any(not str(getattr(h, "__module__", "")).startswith("torch.") for h in hooks)


def is_narrow(weight: Any, wide: torch.dtype) -> bool:
    """Whether a layer computes in less than the dtype of something that it took up and that stays what it is."""
    return isinstance(weight, Tensor) and _is_wider(wide, weight.dtype)


def too_narrow(weight: Tensor, wide: torch.dtype) -> str:
    """What is wrong with a layer that does."""
    return (
        f"deploy() folded a tensor of {wide} that is no parameter or buffer into a layer, which is of {weight.dtype} "
        f"now; the original would go on computing in {wide}. Register it as a buffer, or exclude the module "
        "(deploy(model, exclude=...))"
    )


def inside(module: Any, path: Path) -> Any:
    """The module at a path below another, as code finds it; None where there is none."""
    for name in path:
        module = None if name in module.__dict__ else module._modules.get(name)
        if module is None:
            return None
    return module


def hooks_on(module: nn.Module) -> int:
    """How many hooks see a module's values; those that only compute its weights do not."""
    weights = sum(
        type(h).__module__.startswith(("torch.nn.utils", "torch.nn.modules"))
        for h in module._forward_pre_hooks.values()
    )
    return _hooks(module) - weights


def hooks_differ(module: nn.Module, count: int) -> bool:
    """Whether another number of hooks than `count` sees a module's values."""
    return _hooks(module) != count and hooks_on(module) != count


def _hooks(module: nn.Module) -> int:
    own = module.__dict__
    return (
        len(own["_forward_hooks"])
        + len(own["_forward_pre_hooks"])
        + len(own["_backward_hooks"])
        + len(own["_backward_pre_hooks"])
    )


def _is_wider(wide: torch.dtype, own: torch.dtype) -> bool:
    """Whether two floating dtypes meet in another one than the second; no operation, which a trace would see."""
    return wide is not own and torch.finfo(wide).bits >= torch.finfo(own).bits
