"""Containers: the values that nested inputs and outputs hold, and the same structure around other values.

Lists, tuples, dictionaries and their subclasses, dataclasses and plain objects are containers. What is built anew is of
the class it was, with the attributes it had; no constructor of the user's runs.
"""

from __future__ import annotations

import contextlib
import enum
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

MAX_DEPTH = 8
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a ``class`` statement made


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

    def __str__(self) -> str:
        return f".{self.name}" if self.kind == "attribute" else f"[{self.name!r}]"


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
        keys = [(Step("key", k), dict.__getitem__(value, k)) for k in dict.keys(value)]
        return [*keys, *_attributes(value)]
    if isinstance(value, slice):
        return [(Step("attribute", n), getattr(value, n)) for n in ("start", "stop", "step")]
    if is_dataclass(value) or (hasattr(value, "__dict__") and not callable(value)):
        return _attributes(value)
    return None


def _attributes(value: Any) -> list[tuple[Step, Any]]:
    both = _mirrored(value)
    return [(Step("attribute", n), v) for n, v in _named(value).items() if n not in both]


def _named(value: Any) -> dict[str, Any]:
    """The attributes of an object, also those in slots of a dataclass."""
    held = dict(getattr(value, "__dict__", {}))
    if is_dataclass(value):
        for f in fields(value):
            with contextlib.suppress(Exception):
                held.setdefault(f.name, object.__getattribute__(value, f.name))
    return held


def _mirrored(value: Any) -> frozenset[str]:
    """Names under which a dictionary holds the same as an item and as an attribute, as a `ModelOutput` does."""
    if not isinstance(value, dict):
        return frozenset()
    return frozenset(n for n, v in _named(value).items() if dict.get(value, n, Step) is v)


@dataclass(frozen=True)
class Shape:
    """What a container is apart from the values it holds.

    Args:
        cls: its class.
        steps: how it holds each value, in the order of `parts`.
        factory: of a `defaultdict`.
        mirrored: keys that are attributes as well.
        itself: whether a dictionary is its own ``__dict__``.
    """

    cls: type
    steps: tuple[Step, ...]
    factory: Callable[[], Any] | None = None
    mirrored: frozenset[str] = frozenset()
    itself: bool = False

    def holding(self, values: Sequence[Any]) -> Any:
        """A container of this shape, made without running code of its class."""
        if self.cls is slice:
            return slice(*values)
        pairs = list(zip(self.steps, values, strict=True))
        made = self._empty([v for s, v in pairs if s.kind == "index"], {s.name: v for s, v in pairs if s.kind == "key"})
        if self.itself:
            object.__setattr__(made, "__dict__", made)
            return made
        for step, value in pairs:
            if step.kind == "attribute" or (step.kind == "key" and step.name in self.mirrored):
                object.__setattr__(made, step.name, value)
        return made

    def _empty(self, items: list[Any], keyed: dict[Any, Any]) -> Any:
        builtin: Any = next(c for c in self.cls.__mro__ if not c.__flags__ & _HEAP_TYPE)  # whose memory it is
        if issubclass(self.cls, tuple):
            return builtin.__new__(self.cls, items)
        made = builtin.__new__(self.cls)
        if issubclass(self.cls, defaultdict):
            made.default_factory = self.factory
        if issubclass(self.cls, list):
            list.extend(made, items)
        for key, value in keyed.items():
            builtin.__setitem__(made, key, value)
        return made


def shape_of(value: Any) -> Shape:
    """The shape of a container."""
    factory = value.default_factory if isinstance(value, defaultdict) else None
    steps = tuple(step for step, _ in parts(value) or ())
    return Shape(type(value), steps, factory, _mirrored(value), getattr(value, "__dict__", None) is value)


def with_parts(value: Any, new: Sequence[Any]) -> Any:
    """A container like `value` that holds other values, in the order of `parts`."""
    return shape_of(value).holding(new)


def leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """Every value that is no container, in order; none deeper than `MAX_DEPTH`."""
    held = parts(value) if depth <= MAX_DEPTH else []
    if held is None:
        yield value
        return
    for _, part in held:
        yield from leaves(part, depth + 1)


def named_leaves(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """As `leaves`, each with the path to it.

    >>> list(named_leaves({"a": 1, "b": [2]}, "x"))
    [("x['a']", 1), ("x['b'][0]", 2)]
    """
    held = parts(value) if depth <= MAX_DEPTH else []
    if held is None:
        yield path, value
        return
    for step, part in held:
        yield from named_leaves(part, f"{path}{step}", depth + 1)


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


@dataclass(frozen=True)
class Template(Leaf):
    """A structure with numbered places, as data: `filled` puts values into them.

    Args:
        shape: of the outermost container.
        held: what it holds: templates, places and constants.
    """

    shape: Shape
    held: tuple[Any, ...]


def template_of(value: Any) -> Any:
    """A structure whose leaves are places and constants, as a template; a leaf as it is."""
    held = parts(value)
    return value if held is None else Template(shape_of(value), tuple(template_of(v) for _, v in held))


def filled(template: Template, *values: Any) -> Any:
    """The structure with these values in its places.

    >>> filled(template_of([Place(0), {"a": Place(1)}]), "x", "y")
    ['x', {'a': 'y'}]
    """
    kinds = {Template: lambda t: filled(t, *values), Place: lambda place: values[place.number]}
    return template.shape.holding([kinds.get(type(v), lambda c: c)(v) for v in template.held])


def written(value: Any, key: Any, items: Any) -> Any:
    """A tensor with other numbers at some places; the one that is given stays.

    >>> written(torch.zeros(3), 1, 2.0).tolist()
    [0.0, 2.0, 0.0]
    """
    made = value.clone()
    made[key] = items
    return made


def read_key(value: Any, key: Any) -> Any:
    """What a dictionary holds under a key, whatever its class makes of ``value[key]``."""
    return dict.__getitem__(value, key) if isinstance(value, dict) else value[key]
