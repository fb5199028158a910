"""Walking nested containers: the symbolic values and graph nodes inside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import fx

from reptool.ir.nodes import is_size_like
from reptool.runtime.containers import leaves, mapped

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
