"""Tensors in nested inputs and outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from reptool.walk import rebuilt


def cloned(value: Any, double: bool = False) -> Any:
    """Example inputs that a forward may write into, in float64 if asked."""

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().double().clone() if double and leaf.is_floating_point() else leaf.detach().clone()

    return rebuilt(value, clone)


def tensors_in(value: Any) -> list[Tensor]:
    """Every floating tensor of a nested output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "__dict__") and not isinstance(value, nn.Module):
        return [t for v in vars(value).values() for t in tensors_in(v)]
    return []
