"""Copies of a user's model: one that shares its tensors, one that shares nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from reptool.errors import UnsupportedModelError


def shallow_copy(model: nn.Module) -> nn.Module:
    """A copy of a model's structure that shares its tensors."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors({**module._parameters, **module._buffers, **vars(module)}):
            memo[id(tensor)] = tensor
    return _copied(model, memo)


def full_copy(model: nn.Module) -> nn.Module:
    """A copy of a model that shares nothing (results of computations that it keeps are copied as values)."""
    return _copied(model, as_values(model))


def as_values(model: nn.Module) -> dict[int, Any]:
    """A memo for `copy.deepcopy` with what it cannot copy: results of computations that a model keeps."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors(vars(module)):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return memo


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise UnsupportedModelError(
            f"the {type(model).__name__} cannot be copied ({type(error).__name__}: {error}); remove what copy.deepcopy "
            "cannot copy from its attributes, then deploy"
        ) from error


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if issubclass(type(value), Tensor):  # symbolic values left over from tracing only pretend to be tensors
        yield value
    elif isinstance(value, Mapping) and depth < 5:
        for v in value.values():
            yield from _tensors(v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)) and depth < 5:
        for v in value:
            yield from _tensors(v, depth + 1)
