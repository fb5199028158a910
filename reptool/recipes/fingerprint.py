"""Fingerprint: a deployed model that is deployed again, unchanged and with the same options, is returned as it is."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

from torch import nn

from reptool.ir.walk import named_tensors
from reptool.plan.options import Options

MARK = "_reptool_mark"
_SIMPLE = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def mark(model: nn.Module, inputs: Any, options: Options) -> None:
    """Remember that this model came out for these options."""
    model.__dict__[MARK] = _print(model, inputs, options)


def is_marked(model: nn.Module, inputs: Any, options: Options) -> bool:
    """Whether a model came out for these options and nothing but its values was changed since."""
    found = model.__dict__.get(MARK)
    return found is not None and found == _print(model, inputs, options)


def _print(model: nn.Module, inputs: Any, options: Options) -> str:
    """A fingerprint of structure: classes, code, settings, shapes, hooks; of no parameter's value."""
    chosen = {**vars(options), "rules": None if options.rules is None else sorted(options.rules)}
    chosen["force"] = options.force if isinstance(options.force, bool) else sorted(options.force)
    chosen["lifts"] = sorted(options.lifts)
    chosen["rewrites"] = len(options.rewrites)  # those of a flattened model, which is not deployed again
    shown = [(p, tuple(t.shape), t.dtype) for p, t in named_tensors(inputs)]
    out = hashlib.sha256(repr((chosen, shown)).encode())
    first: dict[int, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        same = first.setdefault(id(module), path)
        out.update(repr((path, same) if same != path else (path, _structure(module))).encode())
    return out.hexdigest()


def _structure(module: nn.Module) -> list[object]:
    cls = type(module)
    functions = [inspect.getattr_static(cls, name, None) for name in ("forward", "__call__")]
    code = [getattr(getattr(f, "__code__", None), "co_code", b"") for f in functions]
    state = {k: v for k, v in vars(module).items() if isinstance(v, _SIMPLE) and not k.startswith("_reptool_")}
    held = [
        (name, None if t is None else (tuple(t.shape), t.dtype, str(t.device)))
        for name, t in (*module._parameters.items(), *module._buffers.items())
    ]
    return [cls.__module__, cls.__qualname__, code, sorted(state.items()), held, [len(vars(module)[h]) for h in _HOOKS]]
