"""Nodes of a captured graph: the name of the operation, and the kind of its value (tensor, size, number, ...)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket


def barrier(value: Any) -> Any:
    """Stands where hooks see a value: nothing moves across it."""
    return value


_INT_METHODS = {"dim", "numel", "nelement", "ndimension", "element_size", "item", "stride"}
_LISTS = {"broadcast_tensors", "meshgrid", "nonzero_tuple", "unique", "unravel_index"}
"""Python functions of torch that give several tensors; of the dispatcher's own, its schemas tell."""
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


DIVISIONS = {"truediv", "true_divide", "div", "__truediv__"}
"""What gives floating-point numbers for integers."""
MADE_LIKE = {"reshape_as", "view_as", "expand_as", "type_as"}
"""What reads nothing of its second argument but its shape or dtype."""
FOREIGN: dict[int, Any] = {}
"""Functions that users registered rules for, by id: their names mean nothing."""


def name_of(node: fx.Node) -> str:
    """The bare name of the operation: ``add_`` and ``operator.iadd`` keep their own names.

    An operator or function that somebody registered has its namespace in front: ``mine::add`` adds nobody knows what.
    """
    target = node.target
    if isinstance(target, str):
        return target if node.op == "call_method" else ""
    if isinstance(target, (OpOverload, OpOverloadPacket)):
        packet = target.overloadpacket if isinstance(target, OpOverload) else target
        space, _, name = str(packet).partition(".")
        return name if space == "aten" else f"{space}::{name}"
    name = getattr(target, "__name__", str(target))
    return f"{target.__module__}::{name}" if id(target) in FOREIGN else name


def is_size_like(node: fx.Node) -> bool:
    """Whether the node holds a number or a size rather than a tensor."""
    return node.meta.get("kind") in ("size", "number", "dtype", "device")


def tensor_kind(node: fx.Node) -> str:
    """'tensor', 'size', 'number', 'dtype', 'device', 'sequence' or 'unknown'."""
    name = name_of(node)
    if node.op == "call_module":
        return "tensor"
    if node.target is getattr:
        return _attribute_kind(node.args[1])
    if node.op == "call_method":
        if name == "size":
            return "size" if len(node.args) == 1 and not node.kwargs else "number"
        if name in _INT_METHODS:
            return "number"
    given = _given(node, name)
    if given is not None and given != 1:
        _remember_length(node, name)
        if given > 1:
            node.meta.setdefault("length", given)
        return "sequence"
    inputs = [n.meta.get("kind") for n in node.all_input_nodes]
    if node.target is operator.getitem:
        first = inputs[0] if inputs else None
        if first == "size":
            return "size" if isinstance(node.args[1], slice) else "number"
        return "tensor" if first in ("tensor", "sequence") else "unknown"
    return _result_kind(node, name, inputs)


def _attribute_kind(attribute: object) -> str:
    """The kind of an attribute of a tensor."""
    if attribute == "shape":
        return "size"
    if attribute in ("dtype", "device", "layout"):
        return str(attribute)
    if attribute in ("T", "mT", "H", "mH", "data", "real", "imag", "values", "indices", "grad"):
        return "tensor"
    numbers = ("ndim", "requires_grad", "is_cuda", "is_cpu", "is_mps", "is_meta", "itemsize")
    return "number" if attribute in numbers else "unknown"


def _result_kind(node: fx.Node, name: str, inputs: list[str | None]) -> str:
    """The kind of what an operation gives, by the kinds of what it is given."""
    if inputs and all(k in ("number", "size") for k in inputs) and (name in _ARITHMETIC or name in _COMPARISONS):
        return "size" if "size" in inputs and name == "add" else "number"
    if name in _COMPARISONS[:6] and any(k in ("number", "size", "dtype", "device") for k in inputs):
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


_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")


def _given(node: fx.Node, name: str) -> int | None:
    """How many values an operation gives: 0 for a list of them, None where nothing says so."""
    if name in _LISTS:
        return 0
    if node.op not in ("call_function", "call_method") or not name.isidentifier() or name.startswith("_"):
        return None
    args = tuple(_kind_of(a) for a in node.args)
    return _returns(name, args, tuple((k, _kind_of(v)) for k, v in sorted(node.kwargs.items())))


def _kind_of(value: Any) -> str:
    """What an argument is, as far as it tells overloads apart."""
    if isinstance(value, fx.Node):
        kind = value.meta.get("kind")
        return "Tensor" if kind == "tensor" else "number" if kind == "number" else "any"
    if isinstance(value, (tuple, list)):
        return "List"
    return {bool: "bool", int: "int", float: "float", str: "str"}.get(type(value), "any")


_FITS = {
    "Tensor": {"Tensor"}, "number": {"int", "float", "number"}, "int": {"int", "number", "float"},
    "bool": {"bool", "int", "number"}, "float": {"float", "number"}, "str": {"str"}, "List": {"List"},
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def _returns(name: str, args: tuple[str, ...], kwargs: tuple[tuple[str, str], ...]) -> int | None:
    """As `_given`, by the schemas that such arguments fit."""
    packet = getattr(torch.ops.aten, name, None)
    counts: set[int] = set()
    for schema in [getattr(packet, n)._schema for n in packet.overloads()] if packet is not None else ():
        if not schema.arguments or not _tensors(schema.arguments[0].type) or not _fits(schema, args, kwargs):
            continue
        several = [str(r.type).startswith("List") for r in schema.returns]
        counts.add(0 if several == [True] else len(several))
    return counts.pop() if len(counts) == 1 else None


def _tensors(kind: Any) -> bool:
    return "Tensor" in str(kind)


def _fits(schema: Any, args: tuple[str, ...], kwargs: tuple[tuple[str, str], ...]) -> bool:
    """Whether arguments of these kinds fit a schema and leave nothing out that it needs."""
    named = dict(kwargs)
    if len(args) > len(schema.arguments) or not named.keys() <= {a.name for a in schema.arguments}:
        return False
    for position, argument in enumerate(schema.arguments):
        kind = args[position] if position < len(args) else named.get(argument.name)
        if kind is None:
            if not argument.has_default_value():
                return False
        elif kind != "any" and not _takes(str(argument.type), kind):
            return False
    return True


def _takes(wanted: str, kind: str) -> bool:
    """Whether a parameter of this type takes an argument of this kind."""
    plain = wanted.removeprefix("Optional[")
    if plain.startswith("List["):
        return kind == "List" or (kind == "int" and plain.startswith("List[int"))
    return plain.rstrip("]") in _FITS[kind]


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


def asking(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The constants of a graph, questions about a tensor's shape or dtype, and what is computed of such alone.

    Args:
        nodes: all of them, in the order of the graph.
    """
    found: set[fx.Node] = set()
    for node in nodes:
        alone = bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if node.meta.get("const") or metadata_read(node) or alone:
            found.add(node)
    return found


def is_inert(node: fx.Node) -> bool:
    """Reads of shapes and ranks, arithmetic on them, and assertions about them."""
    if name_of(node) == "_assert":
        return True
    return bool(metadata_read(node)) or (is_size_like(node) and only_asserted(node))


def is_asked(node: fx.Node) -> bool:
    """Whether this is a comparison whose answer goes to Python, since no operation uses it."""
    return not node.users and name_of(node) in _COMPARISONS


def only_asserted(node: fx.Node) -> bool:
    """Whether a number is used for nothing but calls that assert; a comparison that nothing uses is asked by Python."""
    todo, seen = [node], {node}
    while todo:
        for user in todo.pop().users.keys() - seen:
            if name_of(user) != "_assert":
                if not is_size_like(user) or is_asked(user):
                    return False
                seen.add(user)
                todo.append(user)
    return True


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


_DROPOUTS = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), True),
    **dict.fromkeys(("alpha_dropout", "feature_alpha_dropout"), False),
    "feature_dropout": None,
}
"""Functions that drop at random, and whether those of `torch.nn.functional` do where nobody says."""


def drops(node: fx.Node) -> bool | None:
    """Whether a dropout drops anything: not out of training, nor with a probability of 0; None for all other nodes."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = name_of(node).removesuffix("_")
    if name not in _DROPOUTS:
        return None
    probability = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    given = node.kwargs.get("training", node.kwargs.get("train", _DROPOUTS[name]))
    training = node.args[2] if len(node.args) > 2 else given
    return training is not False and not (type(probability) in (int, float) and probability == 0)
