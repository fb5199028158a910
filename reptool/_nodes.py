"""What a node of a captured graph is, by its target's name."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch._ops import OpOverload, OpOverloadPacket


def barrier(value: Any) -> Any:
    """Stands where hooks see a value: nothing moves across it."""
    return value


_INT_METHODS = {"dim", "numel", "nelement", "ndimension", "element_size", "item", "stride"}
_SEQUENCES = {
    "chunk",
    "split",
    "unbind",
    "tensor_split",
    "split_with_sizes",
    "meshgrid",
    "broadcast_tensors",
    "unique",
    "topk",
    "sort",
    "nonzero_tuple",
    "lstm",
    "gru",
    "max_pool2d_with_indices",
    "unravel_index",
}
_ARITHMETIC = {
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "neg",
    "pos",
    "max",
    "min",
    "ceil",
    "floor",
    "round",
    "abs",
    "sqrt",
    "iadd",
    "isub",
    "imul",
    "int",
    "trunc",
    "prod",
    "log",
    "log2",
}


def name_of(node: fx.Node) -> str:
    """The bare name of the operation: ``add_`` and ``operator.iadd`` keep their own names.

    An operator that somebody registered has its namespace in front: ``mine::add`` adds nobody knows what.
    """
    target = node.target
    if isinstance(target, str):
        return target if node.op == "call_method" else ""
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        space, _, name = str(target).partition(".")
        return name if space == "aten" else f"{space}::{name}"
    return getattr(target, "__name__", str(target))


def is_size_like(node: fx.Node) -> bool:
    """Whether the node holds a number or a size rather than a tensor."""
    return node.meta.get("kind") in ("size", "number", "dtype", "device")


def tensor_kind(node: fx.Node) -> str:
    """'tensor', 'size', 'number', 'dtype', 'device', 'sequence' or 'unknown'."""
    name = name_of(node)
    if node.op == "call_module":
        return "tensor"
    if node.target is getattr:
        attribute = node.args[1]
        if attribute == "shape":
            return "size"
        if attribute in ("dtype", "device", "layout"):
            return str(attribute)
        if attribute in ("T", "mT", "H", "mH", "data", "real", "imag", "values", "indices", "grad"):
            return "tensor"
        return (
            "number"
            if attribute in ("ndim", "requires_grad", "is_cuda", "is_cpu", "is_mps", "is_meta", "itemsize")
            else "unknown"
        )
    if node.op == "call_method":
        if name == "size":
            return "size" if len(node.args) == 1 and not node.kwargs else "number"
        if name in _INT_METHODS:
            return "number"
    if name in _SEQUENCES:
        _remember_length(node, name)
        return "sequence"
    inputs = [n.meta.get("kind") for n in node.all_input_nodes]
    if node.target is operator.getitem:
        first = inputs[0] if inputs else None
        if first == "size":
            return "size" if isinstance(node.args[1], slice) else "number"
        return "tensor" if first in ("tensor", "sequence") else "unknown"
    if (
        inputs
        and all(k in ("number", "size") for k in inputs)
        and (name in _ARITHMETIC or name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_"))
    ):
        return "size" if "size" in inputs and name == "add" else "number"
    if name in ("eq", "ne", "lt", "le", "gt", "ge") and any(k in ("number", "size", "dtype", "device") for k in inputs):
        return "number"
    if name == "not_":
        return "number"
    if name == "barrier":
        return inputs[0] or "unknown" if inputs else "unknown"
    if "unknown" in inputs and node.op == "call_method":
        return "unknown"
    if "unknown" in inputs and name in _ARITHMETIC and "tensor" not in inputs:
        return "unknown"
    return "tensor"


def _remember_length(node: fx.Node, name: str) -> None:
    keys = ("chunks", "split_size_or_sections", "split_sizes", "indices_or_sections", "indices", "sections")
    count = node.args[1] if len(node.args) > 1 else next((node.kwargs[k] for k in keys if k in node.kwargs), None)
    if isinstance(count, (list, tuple)):
        node.meta["length"] = len(count) + (name == "tensor_split")  # that one is cut at these places
    elif name == "tensor_split" and type(count) is int:
        node.meta["length"] = count


_ALWAYS_SAME = {"ndim", "dtype", "device", "layout", "requires_grad", "is_cuda", "is_cpu", "is_meta", "itemsize"}


def metadata_read(node: fx.Node) -> str:
    """'rank' for a read of what no fused layer changes, 'shape' for a read of a size, '' for a read of data."""
    if node.target is getattr and len(node.args) == 2:
        if node.args[1] in _ALWAYS_SAME:
            return "rank"
        return "shape" if node.args[1] == "shape" else ""
    if node.op == "call_method":
        if node.target in ("dim", "ndimension"):
            return "rank"
        if node.target in ("size", "numel", "nelement"):
            return "shape"
    return ""


def is_inert(node: fx.Node) -> bool:
    """Reads of shapes and ranks, arithmetic on them, and assertions about them."""
    if name_of(node) == "_assert":
        return True
    return bool(metadata_read(node)) or (is_size_like(node) and only_asserted(node))


def only_asserted(node: fx.Node) -> bool:
    """Whether a number is used for nothing but assertions."""
    return all(name_of(user) == "_assert" or (is_size_like(user) and only_asserted(user)) for user in node.users)


_NAMED = ("conv", "linear")
"""Functions whose second argument is the weight and whose third is the bias."""


def takes_weight(node: fx.Node) -> bool:
    """Whether a function takes its weight and its bias behind its input."""
    return name_of(node).startswith(_NAMED)


def weight_argument(node: fx.Node) -> fx.Node | None:
    """The constant that a functional layer multiplies by: its second argument, or a matrix on either side."""
    if takes_weight(node):
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        return weight if isinstance(weight, fx.Node) else None
    given = (*node.args[1:], *node.kwargs.values(), *node.args[:1])
    held = [v for v in given if isinstance(v, fx.Node) and v.meta["const"]]
    return held[0] if held else None
