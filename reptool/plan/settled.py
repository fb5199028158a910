"""Drop questions that have one answer only: a rank that a neighbouring norm requires, pieces of fixed channels."""

from __future__ import annotations

import operator

from torch import fx, nn

from reptool.ir.kinds.asked import OF_NUMBERS
from reptool.ir.nodes import name_of
from reptool.ir.trace import Question, Trace, all_events
from reptool.lift.layout.slices import SPLITS
from reptool.lift.reading import arguments

_STRICT = (nn.BatchNorm2d, nn.BatchNorm3d)
_AXES: dict[type, int] = {nn.Conv2d: 2, nn.Conv3d: 3, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}
_ARGUMENTS = {
    "chunk": ("input", "chunks", "dim"),
    "split": ("input", "split_size_or_sections", "dim"),
    "tensor_split": ("input", "indices_or_sections", "dim"),
    "split_with_sizes": ("input", "split_sizes", "dim"),
}
_KEEPS = frozenset({"relu", "relu_", "silu", "gelu", "hardswish", "leaky_relu", "sigmoid", "tanh", "contiguous"})


def drop_settled(trace: Trace) -> None:
    """Forget the questions of a trace that have one answer, whatever comes in.

    ``y = self.norm(x); y.view(-1, 8, *y.shape[2:])`` asks for the length of a slice of a shape. A BatchNorm2d takes
    nothing but four axes, so it is two. How many pieces ``conv(x).chunk(2, 1)`` has depends on the channels of the
    layer alone, where such a norm stands behind a piece.
    """
    for event in all_events(trace.top):
        event.questions[:] = [q for q in event.questions if not _is_settled(q) and not _is_of_widths(q)]


def _is_settled(question: Question) -> bool:
    at = question.at
    if question.what != "length" or at is None:
        return False
    if name_of(at) in SPLITS:
        return _is_cut_in_channels(at)
    if at.target is operator.getitem and isinstance(at.args[0], fx.Node) and _is_plain(at.args[1]):
        at = at.args[0]
    shape_of = at.args[0] if at.target is getattr and at.args[1] == "shape" else None
    return isinstance(shape_of, fx.Node) and _is_certain(shape_of)


def _is_of_widths(question: Question) -> bool:
    """Whether a question is about nothing but the channels of values that a layer reads: it takes no others."""
    stack = [question.at] if question.at is not None and question.what in ("truth", "integer", "number") else []
    read = 0
    while stack:
        node = stack.pop()
        sized = _size_read(node)
        if sized is not None:
            read += 1
            if not any(_takes(reader, *sized) for reader in sized[0].users):
                return False
        elif node.op == "placeholder" or name_of(node) not in OF_NUMBERS:
            return False
        else:
            stack += [n for n in node.all_input_nodes if not n.meta["const"]]
    return read > 0


def _size_read(node: fx.Node) -> tuple[fx.Node, int] | None:
    """The value and the axis whose size a node is: ``x.size(-1)``, ``x.shape[-1]``."""
    of, at = (node.args[0], node.args[1]) if len(node.args) == 2 else (None, None)
    if node.target is operator.getitem and isinstance(of, fx.Node) and of.target is getattr and of.args[1] == "shape":
        of = of.args[0]
    elif node.op != "call_method" or name_of(node) != "size":
        return None
    return (of, at) if isinstance(of, fx.Node) and type(at) is int else None


def _takes(reader: fx.Node, value: fx.Node, axis: int) -> bool:
    """Whether a reader is a layer whose channels stand at this axis of what it reads."""
    layer = reader.meta.get("module") if reader.op == "call_module" and reader.args[:1] == (value,) else None
    if isinstance(layer, nn.modules.conv._ConvNd):
        return axis == -1 - len(layer.kernel_size)
    return isinstance(layer, nn.Linear) and axis == -1


def _is_cut_in_channels(cut: fx.Node) -> bool:
    """Whether a value of fixed channels is cut along them, and it is sure that they are what is cut."""
    given = arguments(cut, _ARGUMENTS.get(name_of(cut), ()), {"dim": 0})
    if given is None or len(given) != 3 or not isinstance(given.get("input"), fx.Node):
        return False
    if any(isinstance(v, fx.Node) for k, v in given.items() if k != "input") or type(given["dim"]) is not int:
        return False
    source = _past_activations(given["input"])
    layer = source.meta.get("module") if source.op == "call_module" else None
    if not isinstance(layer, nn.Module) or type(layer) not in _AXES or given["dim"] not in (1, -1 - _AXES[type(layer)]):
        return False
    normed = any(type(r.meta.get("module")) in _STRICT for piece in cut.users for r in piece.users)
    return normed or type(layer) in _STRICT


def _is_plain(key: object) -> bool:
    return isinstance(key, slice) and all(v is None or isinstance(v, int) for v in (key.start, key.stop, key.step))


def _is_certain(node: fx.Node) -> bool:
    """Whether the rank of a value is fixed by the norm it comes from."""
    node = _past_activations(node)
    return node.op == "call_module" and type(node.meta.get("module")) in _STRICT


def _past_activations(node: fx.Node) -> fx.Node:
    """The value in front of what keeps the shape."""
    while node.op in ("call_function", "call_method") and name_of(node) in _KEEPS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
