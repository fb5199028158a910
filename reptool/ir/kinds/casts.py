"""Casts: a constant brought to the dtype and the device of a value (``self.weight.to(x.dtype)``) stays a constant.

Its values do not depend on the data, its dtype and device do: a layer that takes its place is of the dtype of the
value anyway. Where that dtype is unknown, the constant is assumed to have it already; where it is known and differs,
the constant is rounded to it as the model rounds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reptool.ir.nodes import metadata_read, name_of

_LIKE = {"type_as": 1, "to": 1}
_CASTS = {"to", "type"}
_FACTORIES = {"eye", "zeros", "ones", "full", "arange", "linspace"}
CAST_TO = ("device", "dtype")
"""What ``w.to(x)`` reads of `x`."""


def written_out(
    op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[fx.Node, dict[str, Any]] | None:
    """``w.to(x)`` and ``w.type_as(x)`` of a constant and a value: the value, and the other arguments; else None."""
    if op != "call_method" or target not in _LIKE or not args or not _is_constant(args[0]):
        return None
    rest = dict(kwargs)
    like = args[1] if len(args) == 2 else rest.pop("other", None) if len(args) == 1 else None
    if not isinstance(like, fx.Node) or like.meta["const"] or like.meta.get("kind") != "tensor":
        return None
    return (like, rest) if set(rest) <= {"non_blocking", "copy", "memory_format"} else None


def is_cast(node: fx.Node) -> bool:
    """Whether a node brings a constant to a dtype or device that a value has."""
    if node.op != "call_method" or name_of(node) not in _CASTS or not node.args or not _is_constant(node.args[0]):
        return False
    inputs = [n for n in node.all_input_nodes if not n.meta["const"]]
    return bool(inputs) and all(n.target is getattr and n.args[1] in CAST_TO for n in inputs)


def is_made_like(node: fx.Node) -> bool:
    """Whether a node makes a tensor of numbers that are known, of the dtype or on the device that a value has."""
    made = node.op == "call_function" and name_of(node) in _FACTORIES
    inputs = [n for n in node.all_input_nodes if not n.meta["const"]] if made else []
    return bool(inputs) and all(n.target is getattr and n.args[1] in CAST_TO for n in inputs)


def _is_constant(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.meta["const"] and value.meta.get("kind") == "tensor"


def mark(node: fx.Node) -> None:
    """Say of a new node whether it is a constant that was cast to what a value has, or made of such."""
    if is_cast(node) or is_made_like(node):
        node.meta.update(const=True, cast=True)
    elif node.meta["const"] and any(n.meta.get("cast") for n in node.all_input_nodes):
        if metadata_read(node) == "shape":
            return  # it has the same size in every dtype
        if node.meta["kind"] in ("tensor", "sequence", "unknown"):
            node.meta["cast"] = True
        else:
            node.meta["const"] = False  # it tells the dtype of a value


def made_of(node: fx.Node) -> list[fx.Node]:
    """What the value of a constant is made of: all that it reads, without the value it is cast like."""
    return [n for n in node.all_input_nodes if n.meta["const"]] if node.meta["const"] else list(node.all_input_nodes)


def unknown(value: Any) -> Any:
    """A constant cast to a dtype that is not known: taken for one of it."""
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return value
    return value.to(torch.get_default_dtype())


_NAMED = {"float": torch.float32, "half": torch.float16, "double": torch.float64, "bfloat16": torch.bfloat16}


def cast_target(node: fx.Node) -> torch.dtype | fx.Node | None:
    """The dtype that a value is brought to, or the node that says which; None where this is no such cast alone."""
    if node.op != "call_method" or not node.args or not isinstance(node.args[0], fx.Node) or node.args[0].meta["const"]:
        return None
    name = name_of(node)
    if name in _NAMED:
        return _NAMED[name] if len(node.args) == 1 and not node.kwargs else None
    given: list[Any] = [*node.args[1:], *(v for k, v in node.kwargs.items() if k == "dtype")]
    if name not in ("to", "type") or len(given) != 1 or set(node.kwargs) - {"dtype"}:
        return None
    is_dtype = isinstance(given[0], fx.Node) and given[0].meta.get("kind") == "dtype"
    return given[0] if is_dtype or isinstance(given[0], torch.dtype) else None
