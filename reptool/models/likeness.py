"""Likeness: modules of one structure, of which code that looks at no numbers does the same.

Values that nothing can change are compared as values, and everything else that a module holds is the same only where it
is one object.
"""

from __future__ import annotations

import copyreg
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from reptool.models.reached import ATOMS, CONTAINERS, MAX_NESTED

_VALUES = ATOMS | {torch.dtype, torch.device}
_TABLES = frozenset({"_modules", "_parameters", "_buffers"})


def structure(module: nn.Module) -> tuple[Any, ...] | None:
    """All that code sees of a module and what is in it, but for the numbers of tensors; None where it may see more.

    Args:
        module: the module.

    >>> [structure(nn.Linear(2, 3)) == structure(nn.Linear(2, n)) for n in (3, 4)]
    [True, False]
    """
    modules: dict[int, nn.Module] = {id(m): m for m in module.modules()}
    place = {key: i for i, key in enumerate(modules)}
    objects: dict[int, int] = {}
    held: list[Any] = []
    for inner in modules.values():
        own, kept = vars(inner), (*inner._parameters.items(), *inner._buffers.items())
        if copyreg._slotnames(type(inner)) or any(isinstance(v, nn.Module) for v in own.values()):  # type: ignore[attr-defined]
            return None
        if any(t is not None and vars(t) for _, t in kept):
            return None
        held.append(type(inner))
        held += [(name, *_value(value, objects)) for name, value in own.items() if name not in _TABLES]
        held += [(name, None if m is None else place[id(m)]) for name, m in inner._modules.items()]
        held += [(n, None if t is None else (objects.setdefault(id(t), len(objects)), *_tensor(t))) for n, t in kept]
    return tuple(held)


def _value(value: Any, objects: dict[int, int], depth: int = 0) -> tuple[Any, ...]:
    """A value; of containers, of which code may tell one from two, which of all these it is as well."""
    kind = type(value)
    if kind is float:
        return kind, repr(value)
    if kind in _VALUES:
        return kind, value
    if kind in (tuple, torch.Size) and depth < MAX_NESTED:
        return kind, *(_value(v, objects, depth + 1) for v in value)
    if (kind in (list, dict, OrderedDict) and depth < MAX_NESTED) or (kind in CONTAINERS and not value):
        which = objects.setdefault(id(value), len(objects))
        items = value.items() if isinstance(value, dict) else value
        return kind, which, *(_value(v, objects, depth + 1) for v in items)
    return kind, "one object", id(value)


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    plain = (tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad, tensor.is_leaf)
    return type(tensor), tuple(tensor.shape), *plain
