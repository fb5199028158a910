"""Walking nested containers: the tensors, symbolic values and graph nodes inside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx

from reptool.ir.nodes import is_size_like
from reptool.runtime.containers import leaves, mapped, named_leaves

KINDS: set[type] = set()
"""Types of symbolic values, which capture adds; asked by ``type(v) in KINDS``: code may make `isinstance` say anything.
"""


class Symbolic(Protocol):
    """A value that stands for a node of the graph."""

    @property
    def node(self) -> fx.Node:
        """The node that computes it."""


def map_values(value: Any, fn: Callable[[Symbolic], Any]) -> Any:
    """Apply `fn` to every symbolic value of a structure."""
    return mapped(value, lambda v: fn(v) if type(v) in KINDS else v)


def leaves_in(value: Any) -> Iterator[fx.Node | Symbolic]:
    """Every node and symbolic value of a structure."""
    return (v for v in leaves(value) if isinstance(v, fx.Node) or type(v) in KINDS)


def nodes_in(value: Any) -> Iterator[fx.Node]:
    """Every node of a structure, and those that its symbolic values stand for."""
    for leaf in leaves_in(value):
        yield leaf if isinstance(leaf, fx.Node) else leaf.node


def only_tensors(value: Any) -> bool:
    """Whether an output is a value or a tuple of values: nothing that code could decide by."""
    if isinstance(value, tuple):
        return bool(value) and all(map(only_tensors, value))
    return isinstance(value, fx.Node) and not is_size_like(value)


# --- tensors
Inputs: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"


def named_tensors(value: Any, path: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a structure, with the path to it.

    >>> [path for path, _ in named_tensors({"a": torch.ones(1), "b": [torch.ones(1)]})]
    ["output['a']", "output['b'][0]"]
    """
    return ((p, v) for p, v in named_leaves(value, path) if isinstance(v, Tensor))


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with other tensors."""
    return mapped(value, lambda v: change(v) if isinstance(v, Tensor) else v)


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


def call(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call with a fresh copy of `inputs`: what is written in place into one call must not reach the next."""
    inputs = map_tensors(inputs, Tensor.clone)
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return function(**inputs)
        return function(*inputs) if isinstance(inputs, tuple) else function(inputs)
