"""What a module holds: parts and tensors, registered or kept in plain attributes and in containers there."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type})
CONTAINERS = (dict, OrderedDict, defaultdict, list, tuple, set, frozenset, deque)
MAX_NESTED = 5
"""Containers in containers that are looked into."""
_REGISTERED = frozenset({"_modules", "_parameters", "_buffers"})


def reached(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[Any]]]:
    """Every module that a model registers or keeps in plain attributes, with a path for it and what it keeps there."""
    seen: set[int] = set()
    queue = deque([("", model)])
    while queue:
        path, module = queue.popleft()
        if id(module) in seen:
            continue
        seen.add(id(module))
        held = _kept(module)
        yield path, module, [value for _, value in held]
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for name, child in (*module._modules.items(), *held):
            if isinstance(child, nn.Module):
                queue.append((f"{path}.{name}" if path else name, child))


def _kept(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module keeps in plain attributes, also inside of containers, with the names of the attributes."""
    return [
        (name, leaf)
        for name, value in vars(module).items()
        if type(value) not in ATOMS and name not in _REGISTERED and not _is_empty(value)
        for leaf in _leaves(value)
    ]


def _is_empty(value: Any) -> bool:
    return type(value) in CONTAINERS and not value


def _leaves(value: Any, depth: int = 0) -> Iterator[Any]:
    """What plain containers hold, at most so deep."""
    if type(value) in ATOMS:
        return
    if isinstance(value, (dict, UserDict, MappingProxyType)) and depth < MAX_NESTED:
        for v in value.values():
            yield from _leaves(v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset, deque)) and depth < MAX_NESTED:
        for v in value:
            yield from _leaves(v, depth + 1)
    else:
        yield value


def tensors_in(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and tensors in plain attributes."""
    for leaf in (*module._parameters.values(), *module._buffers.values(), *(v for _, v in _kept(module))):
        if issubclass(type(leaf), Tensor):
            yield leaf
