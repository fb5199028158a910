"""Which value a read sees: every read of a tensor is a read of one (storage, version).

In-place operations make a new version of their tensor; views, identities and eval dropout share a storage. For every
node and every node it reads, `Reads` tells the node whose *value* is read: the node itself, the last whole-tensor
in-place operation on it, or `STALE` when only a part of its storage was written since.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload, OpOverloadPacket

from reptool.ir.nodes import drops, is_size_like, name_of

_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "permute",
    "transpose",
    "t",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "view_as",
    "narrow",
    "select",
    "chunk",
    "split",
    "unbind",
    "tensor_split",
    "split_with_sizes",
    "getitem",
    "movedim",
    "moveaxis",
    "channel_shuffle",
    "swapaxes",
    "swapdims",
    "unfold",
    "diagonal",
    "real",
    "imag",
    "getattr",
    "broadcast_to",
    "reshape_as",
    "rearrange",
    "as_strided",
    "pixel_unshuffle",
}
_SAME = {"detach", "alias", "barrier", "requires_grad_"}
_MAY_ALIAS = {
    "broadcast_tensors", "einsum", "asarray", "as_tensor", "atleast_1d", "atleast_2d", "atleast_3d", "meshgrid",
    "pixel_shuffle", "channel_shuffle", "contiguous", "to", "float", "double", "half", "bfloat16", "type", "type_as",
    "cpu", "cuda",
}  # fmt: skip
"""What may return a view, or its input, although no schema says so: a copy where the layout or dtype is another."""
_NOT_MUTATING = {"requires_grad_", "__getitem__"}
_INPLACE_OPERATORS = {n for o in dir(operator) if hasattr(operator, n := f"i{o.rstrip('_')}")}
"""``iadd`` and so on: what Python has beside an operator of the same name."""


@dataclass
class Reads:
    """The resolved reads of a graph; see the module's text."""

    value: dict[tuple[fx.Node, fx.Node], fx.Node | None] = field(default_factory=dict)
    mutates: dict[fx.Node, fx.Node] = field(default_factory=dict)  # in-place node -> the tensor it writes
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    mutation_order: dict[fx.Node, list[int]] = field(default_factory=dict)  # storage -> positions of its writes
    partial: set[fx.Node] = field(default_factory=set)  # in-place nodes seen through a partial view
    position: dict[fx.Node, float] = field(default_factory=dict)
    readers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    versions: dict[fx.Node, list[tuple[float, fx.Node | None]]] = field(default_factory=dict)  # where it is written

    def of(self, user: fx.Node, node: fx.Node) -> fx.Node | None:
        """The node whose value `user` sees when it reads `node`; None when only a part was overwritten."""
        return self.value.get((user, node), node)

    def at(self, position: float, node: fx.Node) -> fx.Node | None:
        """As `of`, for a reader at a position of the graph."""
        return next((value for p, value in reversed(self.versions.get(node, ())) if p < position), node)

    def written_between(self, node: fx.Node, first: float, last: float) -> bool:
        """Whether the storage of `node` is written between two positions of the graph."""
        return any(first <= p < last for p in self.mutation_order.get(self.storage.get(node, node), ()))


def mutated_argument(node: fx.Node) -> fx.Node | None:
    """The tensor an in-place operation writes, None for everything else."""
    if node.op == "call_module":
        module = node.meta.get("module")
        changes = bool(getattr(module, "inplace", False)) and not (
            isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
        )
        return node.args[0] if changes and node.args and isinstance(node.args[0], fx.Node) else None
    if node.op not in ("call_function", "call_method") or drops(node) is False:
        return None
    out = node.kwargs.get("out")
    if isinstance(out, fx.Node):
        return out
    name = name_of(node)
    if isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return next((n for n in written_by(node.target, node.args, node.kwargs) if isinstance(n, fx.Node)), None)
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    if not isinstance(first, fx.Node) or is_size_like(first):
        return None
    changes = (
        (node.op == "call_method" and name.endswith("_") and not name.endswith("__") and name not in _NOT_MUTATING)
        or (node.op == "call_function" and name in _INPLACE_OPERATORS and node.target is getattr(operator, name, None))
        or node.target is operator.setitem
        or (node.op == "call_function" and name.endswith("_") and not name.endswith("__"))
        or (name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__") and node.op == "call_method")
        or bool(node.kwargs.get("inplace", False))
    )
    return first if changes else None


def written_by(op: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operation of the dispatcher writes, as its schemas say."""
    names = op.overloads() if isinstance(op, OpOverloadPacket) else ()
    schemas = [getattr(op, n)._schema for n in names] if isinstance(op, OpOverloadPacket) else [op._schema]
    found: dict[int, Any] = {}
    for schema in schemas:
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[position] if position < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
            parts = given if isinstance(given, (list, tuple)) else [given]
            found.update({id(p): p for p in parts})
    return list(found.values())


@functools.lru_cache(maxsize=4096)
def _aliases(name: str) -> bool:
    """Whether a function of this name may return its input, or a view of it."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() and not name.startswith("__") else None
    returns = [r.alias_info for n in packet.overloads() for r in getattr(packet, n)._schema.returns] if packet else []
    return name in _MAY_ALIAS or any(a is not None and not a.is_write for a in returns)


def writes_many(node: fx.Node) -> bool:
    """Whether an operation writes several tensors at once, or those in a list."""
    if node.op == "call_function" and isinstance(node.target, (OpOverload, OpOverloadPacket)):
        return sum(isinstance(n, fx.Node) for n in written_by(node.target, node.args, node.kwargs)) > 1
    out = node.kwargs.get("out")
    if isinstance(out, (list, tuple)) and any(isinstance(n, fx.Node) for n in out):
        return True
    name, first = name_of(node), node.args[0] if node.args else None
    listed = isinstance(first, (list, tuple)) and any(isinstance(n, fx.Node) for n in first)
    return node.op == "call_function" and listed and name.endswith("_") and not name.endswith("__")


def shares(node: fx.Node) -> str:
    """How a node's output lies in its first input's storage: 'same', 'view' or ''."""
    if node.op == "call_module":
        module = node.meta.get("module")
        if isinstance(module, nn.Identity) or (
            isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
        ):
            return "same"
        if isinstance(module, (nn.Flatten, nn.Unflatten)):
            return "view"
        return "view" if node.meta.get("kind") == "unknown" else ""
    name = name_of(node)
    dropping = drops(node)
    if dropping is not None:
        return "view" if dropping else "same"  # what drops may still turn out to be a copy
    if name in _SAME:
        return "same"
    if name in _VIEWS or _aliases(name.partition(".")[0]):
        return "view"
    return "view" if node.meta.get("kind") == "unknown" and node.op == "call_function" else ""


def resolve(graph: fx.Graph) -> Reads:
    """Follow every tensor of `graph` through its in-place operations."""
    reads = Reads()
    current: dict[fx.Node, fx.Node | None] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    twins: dict[fx.Node, fx.Node] = {}  # node -> representative of "the same tensor"
    dirty = False
    for position, node in enumerate(graph.nodes):
        reads.position[node] = position
        for read in node.all_input_nodes:
            seen = current.get(read, read) if dirty else read
            if seen is not read:
                reads.value[node, read] = seen
            target = seen if seen is not None else read
            reads.readers.setdefault(target, []).append(node)
        written = mutated_argument(node)
        first = written if written is not None else _first(node)
        how = "same" if written is not None else shares(node)
        if how and first is not None and not is_size_like(node):
            root = reads.storage.get(first, first)
            reads.storage[node] = root
            members.setdefault(root, [root]).append(node)
            if how == "same":
                twins[node] = twins.get(first, first)
        if written is not None:
            dirty = True
            reads.mutates[node] = written
            root = reads.storage.get(written, written)
            reads.mutation_order.setdefault(root, []).append(position)
            same = twins.get(written, written)
            for other in members.get(root, [root]):
                if other is node:
                    continue
                whole = twins.get(other, other) is same
                current[other] = node if whole else None
                reads.versions.setdefault(other, []).append((position, current[other]))
                if not whole:
                    reads.partial.add(node)
    return reads


def storage_of(node: fx.Node) -> fx.Node:
    """The node that made the memory of a value: what `resolve` finds, for one value."""
    while True:
        written = mutated_argument(node)
        first = written if written is not None else _first(node) if shares(node) else None
        if first is None or is_size_like(node):
            return node
        node = first


def _first(node: fx.Node) -> fx.Node | None:
    first = next((a for a in (*node.args, *node.kwargs.values()) if not isinstance(a, str)), None)
    if isinstance(first, fx.Node):
        return first
    if isinstance(first, (tuple, list)) and first and isinstance(first[0], fx.Node):
        return first[0]
    return None
