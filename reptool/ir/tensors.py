"""Tensors in nested inputs and outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reptool.runtime.containers import leaves, mapped


def cloned(value: Any, double: bool = False) -> Any:
    """Example inputs that a forward may write into, in float64 if asked."""

    def clone(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().double().clone() if double and leaf.is_floating_point() else leaf.detach().clone()

    return mapped(value, clone)


def tensors_in(value: Any) -> list[Tensor]:
    """Every floating tensor of a nested output, in order."""
    return [v for v in leaves(value) if isinstance(v, Tensor) and v.is_floating_point()]
