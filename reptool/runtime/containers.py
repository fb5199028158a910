"""Containers: the values that nested inputs and outputs hold, and the same structure around other values.

Lists, tuples, dictionaries and their subclasses, dataclasses and plain objects are containers. What is built anew is of
the class it was, with the attributes it had; no constructor of the user's runs.
"""

from __future__ import annotations

import copy
import enum
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

MAX_DEPTH = 8


class Leaf:
    """What is never taken apart, although it holds something."""

    __slots__ = ()


_LEAVES = (Leaf, str, bytes, int, float, complex, Tensor, nn.Module, type, enum.Enum, fx.Node, fx.Proxy, torch.Size)


@dataclass(frozen=True)
class Step:
    """How a container holds a value: at an index, under a key, or as an attribute.

    Args:
        kind: ``"index"``, ``"key"`` or ``"attribute"``.
        name: the index, key or name.
    """

    kind: str
    name: Any


def parts(value: Any) -> list[tuple[Step, Any]] | None:
    """What a container holds, in order; None for everything that is no container.

    >>> [(s.kind, s.name) for s, _ in parts({"a": 1, "b": 2})]
    [('key', 'a'), ('key', 'b')]
    """
    if value is None or isinstance(value, _LEAVES):
        return None
    if isinstance(value, (list, tuple)):
        return [*((Step("index", i), v) for i, v in enumerate(tuple(value))), *_attributes(value)]
    if isinstance(value, dict):
        return [*((Step("key", k), dict.__getitem__(value, k)) for k in dict.keys(value)), *_attributes(value)]
    if isinstance(value, slice):
        return [(Step("attribute", n), getattr(value, n)) for n in ("start", "stop", "step")]
    if is_dataclass(value) or (hasattr(value, "__dict__") and not callable(value)):
        return _attributes(value)
    return None


def _attributes(value: Any) -> list[tuple[Step, Any]]:
    held = dict(getattr(value, "__dict__", {}))
    if is_dataclass(value):
        held |= {f.name: getattr(value, f.name) for f in fields(value) if hasattr(value, f.name)}
        if isinstance(value, dict):  # a `ModelOutput` holds its fields as items too
            held = {n: v for n, v in held.items() if not (n in value and dict.__getitem__(value, n) is v)}
    return [(Step("attribute", n), v) for n, v in held.items()]


def with_parts(value: Any, new: Sequence[Any]) -> Any:
    """A container like `value` that holds other values, in the order of `parts`."""
    steps = [step for step, _ in parts(value) or ()]
    items = [v for step, v in zip(steps, new, strict=True) if step.kind == "index"]
    keyed = {step.name: v for step, v in zip(steps, new, strict=True) if step.kind == "key"}
    named = {step.name: v for step, v in zip(steps, new, strict=True) if step.kind == "attribute"}
    if isinstance(value, slice):
        return slice(*new)
    made = _empty(value, items, keyed)
    for name, held in named.items():
        object.__setattr__(made, name, held)
    if is_dataclass(value) and isinstance(value, dict):
        for name, held in keyed.items():
            if name in vars(value):
                object.__setattr__(made, name, held)
    return made


def _empty(value: Any, items: list[Any], keyed: dict[Any, Any]) -> Any:
    """A container of the same class with these items and no attributes; code of the class is not run."""
    cls = type(value)
    if isinstance(value, tuple):
        return tuple.__new__(cls, items)
    if isinstance(value, list):
        made: Any = list.__new__(cls)
        list.extend(made, items)
        return made
    if isinstance(value, dict):
        base: Any = next(b for b in (OrderedDict, defaultdict, dict) if isinstance(value, b))
        made = base.__new__(cls)
        if isinstance(value, defaultdict):
            made.default_factory = value.default_factory
        for key, held in keyed.items():
            base.__setitem__(made, key, held)
        return made
    try:
        return object.__new__(cls)
    except TypeError:  # its class is made in C
        return copy.copy(value)


def leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """Every value that is no container, in order; none deeper than `MAX_DEPTH`."""
    held = parts(value) if depth <= MAX_DEPTH else []
    if held is None:
        yield value
        return
    for _, part in held:
        yield from leaves(part, depth + 1)


def mapped(value: Any, change: Callable[[Any], Any], depth: int = 0) -> Any:
    """The same structure with every leaf changed.

    Lists, tuples, dictionaries and their subclasses are new objects; a plain object of which no leaf changes stays the
    object it is.

    >>> mapped({"a": [1, 2]}, lambda v: v + 1)
    {'a': [2, 3]}
    """
    held = parts(value) if depth <= MAX_DEPTH else None
    if held is None:
        return change(value)
    new = [mapped(part, change, depth + 1) for _, part in held]
    if not isinstance(value, (list, tuple, dict)) and all(a is b for a, (_, b) in zip(new, held, strict=True)):
        return value
    return with_parts(value, new)


# --- structures as data ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place(Leaf):
    """Where in a template the value of this number goes."""

    number: int


class Template(Leaf):
    """A structure with numbered places, as one constant: `filled` puts values into them.

    Args:
        structure: containers whose leaves are constants and `Place`s.
    """

    def __init__(self, structure: Any) -> None:
        self.structure = structure

    def __repr__(self) -> str:
        return f"Template({self.structure!r})"


def filled(template: Template, *values: Any) -> Any:
    """The structure with these values in its places.

    >>> filled(Template([Place(0), {"a": Place(1)}]), "x", "y")
    ['x', {'a': 'y'}]
    """
    return mapped(template.structure, lambda v: values[v.number] if type(v) is Place else v)


def read_key(value: Any, key: Any) -> Any:
    """What a dictionary holds under a key, whatever its class makes of ``value[key]``."""
    return dict.__getitem__(value, key) if isinstance(value, dict) else value[key]
