"""Facts about a module's class: whose forward it runs, which methods are the user's own, which hooks watch it."""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
from typing import Any

import torch
from torch import fx, nn

from reptool.ir.computed_weights import is_weight_hook
from reptool.pysource.functions import behind
from reptool.runtime.absorbed import Absorbed
from reptool.runtime.hooks import is_own_hook


def stock_forward(module: nn.Module) -> bool:
    """Whether `module` runs a forward of torch.nn itself (a subclass that adds nothing counts)."""
    if isinstance(module, torch.jit.ScriptModule):
        return True  # compiled: there is no code to follow
    bound = module.__dict__.get("forward")
    function = getattr(bound, "__func__", None) if bound is not None else type(module).forward
    home = getattr(function, "__module__", "") or ""
    if not home.startswith(("torch.nn.modules", "torch.ao.nn")):
        return False
    return not isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))


_SEVERAL = (nn.RNNBase, nn.MultiheadAttention, nn.LSTMCell, nn.AdaptiveLogSoftmaxWithLoss)


def given_by(module: nn.Module) -> str:
    """What kind of value a module gives that is not opened: 'tensor', or 'sequence' for several."""
    return "sequence" if isinstance(module, _SEVERAL) or getattr(module, "return_indices", False) else "tensor"


_METHODS: dict[type, tuple[str, ...]] = {}


def own_methods(cls: type) -> tuple[str, ...]:
    """Names of the plain methods that the forward of `cls` reaches through ``self``."""
    if cls in _METHODS:
        return _METHODS[cls]
    found: list[str] = []
    queue = [getattr(cls, "forward", None)]
    while queue:
        for name in [n for f in behind(queue.pop()) for n in f.__code__.co_names]:
            function = inspect.getattr_static(cls, name, None)
            if name in found or name == "forward" or not inspect.isfunction(function):
                continue
            if (function.__module__ or "").startswith("torch.nn.") or name.startswith("__"):
                continue
            found.append(name)
            queue.append(function)
    _METHODS[cls] = tuple(found)
    return _METHODS[cls]


_CALLERS: dict[type, type | None] = {}


def calls_itself(cls: type) -> type | None:
    """The class that gives modules of `cls` a ``__call__`` of their own, which does more than run the forward."""
    if cls not in _CALLERS:
        own = (c for c in cls.__mro__ if c is nn.Module or _of_torch(c) or "__call__" in vars(c))
        found = next(own, None)
        plain = found in (None, nn.Module, Absorbed) or _of_torch(found) or issubclass(cls, fx.GraphModule)
        _CALLERS[cls] = None if plain else found
    return _CALLERS[cls]


def _of_torch(cls: type) -> bool:
    return (cls.__module__ or "").startswith("torch.")


@functools.lru_cache(maxsize=4096)
def catches(code: Any) -> bool:
    """Whether a function has an ``except`` clause."""
    if code is None:
        return False
    names = [i.opname for i in dis.get_instructions(code) if i.opname != "CACHE"]
    bare = any(a == "PUSH_EXC_INFO" and b == "POP_TOP" for a, b in itertools.pairwise(names))
    return bare or "CHECK_EXC_MATCH" in names or "JUMP_IF_NOT_EXC_MATCH" in names


_GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip


def foreign_hooks(module: nn.Module) -> bool:
    """Whether hooks that are neither the model's weights' own nor reptool's watch a module."""
    pre = [h for h in module._forward_pre_hooks.values() if not is_weight_hook(h) and not is_own_hook(h)]
    return any(getattr(nn.modules.module, n, None) for n in _GLOBAL_HOOKS) or bool(
        pre or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def package_of(thing: Any) -> str:
    """The top package a class or function comes from."""
    return (getattr(thing, "__module__", None) or "").partition(".")[0]


def watched_classes(model: nn.Module) -> tuple[type, ...]:
    """Classes whose outputs a model promises to record on demand (the ``_can_record_outputs`` of transformers)."""
    found: list[type] = []
    for module in model.modules():
        promised = getattr(type(module), "_can_record_outputs", None)
        for specs in promised.values() if isinstance(promised, dict) else ():
            for spec in specs if isinstance(specs, (list, tuple)) else [specs]:
                cls = spec if isinstance(spec, type) else getattr(spec, "target_class", None)
                if isinstance(cls, type):
                    found.append(cls)
    return tuple(dict.fromkeys(found))
