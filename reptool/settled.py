"""Settled questions: those about a rank that can be no other, because a norm in front of it raises for any other."""

from __future__ import annotations

import operator

from torch import fx, nn

from reptool._nodes import name_of
from reptool.trace import Question, Trace, all_events

_STRICT = (nn.BatchNorm2d, nn.BatchNorm3d)
_KEEPS = frozenset({"relu", "relu_", "silu", "gelu", "hardswish", "leaky_relu", "sigmoid", "tanh", "contiguous"})


def drop_settled(trace: Trace) -> None:
    """Forget the questions of a trace that have one answer, whatever comes in.

    ``y = self.norm(x); y.view(-1, 8, *y.shape[2:])`` asks for the length of a slice of a shape. A BatchNorm2d takes
    nothing but four axes, so it is two.
    """
    for event in all_events(trace.top):
        event.questions[:] = [q for q in event.questions if not _is_settled(q)]


def _is_settled(question: Question) -> bool:
    at = question.at
    if question.what != "length" or at is None:
        return False
    if at.target is operator.getitem and isinstance(at.args[0], fx.Node) and _is_plain(at.args[1]):
        at = at.args[0]
    shape_of = at.args[0] if at.target is getattr and at.args[1] == "shape" else None
    return isinstance(shape_of, fx.Node) and _is_certain(shape_of)


def _is_plain(key: object) -> bool:
    return isinstance(key, slice) and all(v is None or isinstance(v, int) for v in (key.start, key.stop, key.step))


def _is_certain(node: fx.Node) -> bool:
    """Whether the rank of a value is fixed by the norm it comes from."""
    while node.op in ("call_function", "call_method") and name_of(node) in _KEEPS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "call_module" and type(node.meta.get("module")) in _STRICT
