"""Outcome: what a model consists of, as data that are the same in every process, whatever its weights are."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.decisions import described
from reptool.recipes.plain import NotPlainError, encode
from reptool.runtime.absorbed import Absorbed, plain_attributes
from reptool.runtime.expect import FUSED
from reptool.runtime.gates.called import CALLED
from reptool.runtime.gates.calls import kind_of
from reptool.runtime.gates.marker import GATE
from reptool.runtime.hooks import guarded_rank, is_dtype_guarded
from reptool.runtime.state import FOLDED

MAX_DEPTH = 8
Part = dict[str, Any]
"""A module: its class, its settings where it is the user's, and a digest of all the rest."""


def outcome(model: nn.Module) -> dict[str, Part]:
    """Every module by its path: class, settings, shapes, methods that were written anew, and what guards it.

    Args:
        model: any module.

    >>> found = outcome(nn.Sequential(nn.Linear(2, 3)))
    >>> sorted(found), found["0"]["class"]
    (['', '0'], 'torch.nn.modules.linear.Linear')
    """
    first: dict[int, str] = {}
    found: dict[str, Part] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        same = first.setdefault(id(module), path)
        found[path] = _part(module) if same == path else {"same": same}
    return found


def _part(module: nn.Module) -> Part:
    kind = kind_of(type(module))
    settings = {name: _setting(value) for name, value in sorted(plain_attributes(module).items())}
    rest = [_tensors(module), _methods(module), _guards(module)]
    if isinstance(module, Absorbed) or kind.startswith("torch.nn."):
        return {"class": kind, "digest": digest([settings, *rest, module.extra_repr()])}
    return {"class": kind, "settings": settings, "digest": digest(rest)}


def _setting(value: Any) -> Any:
    try:
        return encode(value)
    except NotPlainError:  # a number of numpy, an enumeration
        return words(value)


def _tensors(module: nn.Module) -> list[object]:
    held = (*module._parameters.items(), *module._buffers.items())
    return [(n, n not in module._non_persistent_buffers_set, tuple(t.shape)) for n, t in held if t is not None]


def _methods(module: nn.Module) -> str:
    cls, methods, plain = type(module).__dict__.get("_reptool_derived", (None, (), False))
    return "" if cls is None else words((cls, methods, plain))


def _guards(module: nn.Module) -> str:
    own = vars(module)
    folded = [dataclasses.astuple(f) for f in own.get(FOLDED, ())]
    guarded = (own.get(GATE), own.get(CALLED), folded, own.get(FUSED), guarded_rank(module), is_dtype_guarded(module))
    return words(guarded)


def digest(value: object) -> str:
    """A digest of data that print the same in every process."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:20]


def words(value: Any, depth: int = 0) -> str:
    """A value as text that is the same in every process; of what has none, the type."""
    kind = type(value)
    if depth > MAX_DEPTH:
        return kind.__name__
    if isinstance(value, Tensor):
        return f"tensor{tuple(value.shape)}"
    if isinstance(value, type) or (hasattr(value, "__qualname__") and hasattr(value, "__module__")):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, enum.Enum):
        return f"{kind.__name__}.{value.name}"
    if isinstance(value, slice):
        return f"slice{value.start, value.stop, value.step}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return f"{kind.__name__} {value!r}"
    if isinstance(value, Mapping):
        return f"{kind.__name__}({', '.join(words(pair, depth + 1) for pair in value.items())})"
    if isinstance(value, (list, tuple)):
        return f"{kind.__name__}({', '.join(words(v, depth + 1) for v in value)})"
    if isinstance(value, (set, frozenset)):
        return f"{kind.__name__}({', '.join(sorted(words(v, depth + 1) for v in value))})"
    if dataclasses.is_dataclass(value):
        held = (words(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value))
        return f"{kind.__name__}({', '.join(held)})"
    return kind.__name__


def code(graph: fx.Graph) -> str:
    """A digest of what a module's code runs.

    Args:
        graph: of one run on symbolic values.
    """
    return digest([(described(n), words(fx.node.map_arg((n.args, n.kwargs), str))) for n in graph.nodes])


def difference(here: Mapping[str, Part], there: Mapping[str, Part]) -> str:
    """The first difference between two outcomes in words, '' where there is none."""
    for path in (*there, *(p for p in here if p not in there)):
        mine, other = here.get(path), there.get(path)
        if mine == other:
            continue
        name = path or "<root>"
        if mine is None or other is None:
            return f"there is {'no' if mine is None else 'a'} {name!r} here"
        if "same" in mine or "same" in other:
            return f"{name!r} is shared with another module in one of them"
        if mine.get("class") != other.get("class"):
            return f"{name!r} is a {mine.get('class')} here, and was a {other.get('class')}"
        a, b = mine.get("settings", {}), other.get("settings", {})
        changed = next((n for n in (*b, *a) if a.get(n, "nothing") != b.get(n, "nothing")), None)
        if changed is not None:
            now, then = a.get(changed, "nothing"), b.get(changed, "nothing")
            return f"{changed!r} of {name!r} is {now!r} here, and was {then!r}"
        return f"{name!r} ({mine.get('class')}) has other shapes, geometry, checks or methods here"
    return ""
