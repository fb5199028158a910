"""A node of an ONNX graph as its operator reads it, and the graph that it is written into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

Made = fx.Node | list[fx.Node] | None
"""The value of a node, or its values; None for a node that stays as it is."""


class Reader(Protocol):
    """What an operator needs to know of the graph in which it stands."""

    def value(self, given: Any) -> fx.Node | None:
        """The node of an input, None where there is none."""

    def constant(self, given: Any) -> Tensor | None:
        """The tensor of an input that is constant."""

    def shape(self, given: Any) -> tuple[int | None, ...] | None:
        """The sizes of a value as far as the file fixes them; None where not even their number is known."""

    def dtype(self, given: Any) -> torch.dtype | None:
        """The dtype of a value as far as it is fixed."""

    def held(self, tensor: Tensor) -> fx.Node:
        """Write a constant that was worked out."""

    def call(self, function: Callable[..., Any], *args: Any, kind: str = "tensor") -> fx.Node:
        """Write one operation."""

    def size(self, value: fx.Node, axis: int) -> fx.Node:
        """Write the size of a value along an axis."""


class Node:
    """A node with its inputs and attributes."""

    def __init__(self, node: Any, r: Reader, opset: int) -> None:
        self.node, self.r, self.opset = node, r, opset

    def __len__(self) -> int:
        return len(self.node.inputs)

    def given(self, i: int) -> Any:
        """An input as the file holds it, None where there is none."""
        return self.node.inputs[i] if i < len(self.node.inputs) else None

    def value(self, i: int) -> fx.Node | None:
        """The node of an input."""
        return self.r.value(self.given(i))

    def constant(self, i: int) -> Tensor | None:
        """The tensor of an input that is constant."""
        return self.r.constant(self.given(i))

    def ints(self, i: int, attribute: str = "") -> list[int] | None:
        """A constant input, or the attribute that it was in earlier opsets."""
        if attribute and attribute in self.node.attributes:
            return list(self.attribute(attribute))
        found = self.constant(i)
        return None if found is None else [int(v) for v in found.reshape(-1)]

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute."""
        held = self.node.attributes.get(name)
        return default if held is None else held.value

    def rank(self, i: int = 0) -> int | None:
        """The number of axes of an input, as far as it is fixed."""
        shape = self.r.shape(self.given(i))
        return None if shape is None else len(shape)

    @property
    def single(self) -> bool:
        """Whether nothing but the first output is used."""
        return all(not o.uses() and not o.is_graph_output() for o in self.node.outputs[1:])


def padded(n: Node, x: fx.Node, before: list[int], after: list[int], fill: float = 0.0) -> fx.Node:
    """Write a padding by `before` and `after` on the last axes."""
    first = next((i for i, p in enumerate(zip(before, after, strict=True)) if any(p)), len(before))
    flat = [p for pair in zip(reversed(before[first:]), reversed(after[first:]), strict=True) for p in pair]
    return n.r.call(F.pad, x, flat, "constant", fill) if flat else n.r.call(torch.clone, x)


def as_it_is(n: Node) -> Made:
    """The first input itself, where nothing reads another output."""
    x = n.value(0)
    return None if x is None or not n.single else n.r.call(torch.clone, x)
