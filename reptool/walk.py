"""Containers, dataclasses and plain objects: the values they hold, and the same structure with other leaves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, fx, nn

from reptool._nodes import is_size_like
from reptool._value import Attribute, Value
from reptool.trace import Input


def map_values(value: Any, fn: Callable[[Value], Any]) -> Any:
    """Apply `fn` to every tensor-like value inside plain containers."""
    if isinstance(value, Value):
        return fn(value)
    if isinstance(value, tuple):
        made = [map_values(v, fn) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [map_values(v, fn) for v in value]
    if type(value) is dict:
        return {k: map_values(v, fn) for k, v in value.items()}
    return value


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Every node held by containers, dataclasses and plain objects."""
    for leaf in leaves_in(value):
        yield leaf if isinstance(leaf, fx.Node) else leaf.node


def only_tensors(value: Any) -> bool:
    """Whether an output is a value or a tuple of values: nothing that code could decide by."""
    if isinstance(value, tuple):
        return bool(value) and all(map(only_tensors, value))
    return isinstance(value, fx.Node) and not is_size_like(value)


def leaves_in(value: Any, depth: int = 0) -> Iterator[fx.Node | Value]:
    """Every node and value held by containers, dataclasses and plain objects."""
    if isinstance(value, fx.Node) or type(value) is Value or type(value) is Attribute:
        yield value
    elif isinstance(value, (str, int, float, Tensor, nn.Module, type)) or value is None or depth > 6:
        return
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from leaves_in(v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for v in value:
            yield from leaves_in(v, depth + 1)
    elif isinstance(value, slice):
        yield from leaves_in((value.start, value.stop, value.step), depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from leaves_in(getattr(value, f.name, None), depth + 1)
    elif hasattr(value, "__dict__") and not callable(value):
        for v in vars(value).values():
            yield from leaves_in(v, depth + 1)


def rebuilt(value: Any, change: Callable[[Any], Any], depth: int = 0) -> Any:
    """A structure of containers, dataclasses and plain objects with its leaves changed; `value` stays as it is."""
    if isinstance(value, tuple):
        made = [rebuilt(v, change, depth + 1) for v in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    if isinstance(value, list):
        return [rebuilt(v, change, depth + 1) for v in value]
    if type(value) is dict:
        return {k: rebuilt(v, change, depth + 1) for k, v in value.items()}
    plain = not isinstance(value, (Tensor, nn.Module, Input, type)) and not callable(value)
    if not plain or not hasattr(value, "__dict__") or depth > 6:
        return change(value)
    items = {k: rebuilt(v, change, depth + 1) for k, v in value.items()} if isinstance(value, dict) else {}
    fields_ = {k: rebuilt(v, change, depth + 1) for k, v in vars(value).items()}
    if all(v is value[k] for k, v in items.items()) and all(v is vars(value)[k] for k, v in fields_.items()):
        return value
    twin = copy.copy(value)
    for k, v in items.items():
        dict.__setitem__(twin, k, v)
    for k, v in fields_.items():
        object.__setattr__(twin, k, v)
    return twin
