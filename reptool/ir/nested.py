"""Calling a function on nested inputs, and the tensors that go in and come out, each with the path to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

Inputs: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"


def tensors_in(value: Any, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples, lists and mappings, with the path to it.

    >>> [path for path, _ in tensors_in({"a": torch.ones(1), "b": [torch.ones(1)]})]
    ["output['a']", "output['b'][0]"]
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from tensors_in(item, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors_in(item, f"{path}[{index}]")


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested value with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        made = [mapped(item, change) for item in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def call(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call with a fresh copy of `inputs`: what is written in place into one call must not reach the next."""
    inputs = mapped(inputs, Tensor.clone)
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return function(**inputs)
        return function(*inputs) if isinstance(inputs, tuple) else function(inputs)
