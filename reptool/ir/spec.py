"""Spec: what one phase may rely on when the next begins, checked where `REPTOOL_CHECK=1` is set (as in the tests).

captured
    Each node has the annotations of `META`, of these types, and no others. A constant is made of constants, but for
    what casts or shapes it. A module that is called, and a tensor that is read, is the one at this path (the weights
    of an exported program are at none). The calls are a tree in which an operation occurs once, in the order of the
    graph, in the call it names. A question is asked of a node of the graph, and an output is one.
lifted
    An operation reads values that come before it. A sum has a map or None for each of its sources. The kernel of an
    operation is a shape: it holds no weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import CodeType
from typing import Any

from torch import Tensor, fx, nn

from reptool.errors import ReptoolError
from reptool.ir.ops import Affine, Op, Reduced, Sum
from reptool.ir.trace import Event, Trace, all_events

KINDS = frozenset(
    {"tensor", "size", "number", "dtype", "device", "layout", "sequence", "unknown", "output", None}
)  # fmt: skip
"""What a node may give; None where it is the value of an earlier run."""
META: dict[str, tuple[type, ...]] = {
    "event": (Event, type(None)),  # the call in which it ran; None for the value of an earlier run
    "const": (bool,),  # whether it depends on no input
    "kind": (str, type(None)),
    "frame": (object,),  # the line of the model's code
    "time": (int,),  # when it was made, and when nobody held it any more
    "dead": (int,),
    "where": (tuple,),  # the code that made the call, and the offset in it
    "tensor": (Tensor,),  # a parameter, buffer or constant
    "listed": (bool,),
    "module": (nn.Module,),  # of a call
    "hooked": (bool,),
    "opaque": (str,),  # why its code could not be followed
    "cast": (bool,),  # a constant of the dtype of a value
    "ranks": (bool,),  # a number that ranks alone tell, or a constant shaped by such numbers
    "length": (int,),  # how many values a sequence has
    "sizes": (tuple,),  # of its axes, or the number it is, as a graph with proven shapes states them
    "through": (list,),  # the calls that hand it on
    "kept": (fx.Node,),  # the node of an earlier run
    "fixed": (tuple,),  # its sizes that are the same at every call, None for the others
}
"""The annotations of a node that was captured."""
REQUIRED = ("event", "const", "kind")


class SpecError(ReptoolError):
    """A phase handed on something that the next must not get: a defect of reptool."""


def checking() -> bool:
    """Whether phases are checked."""
    return os.environ.get("REPTOOL_CHECK", "0") not in ("", "0")


def check_trace(trace: Trace) -> Trace:
    """The trace that was captured, checked.

    Raises:
        SpecError: a rule of this phase does not hold.
    """
    if checking():
        _raise("captured", (*_annotations(trace), *_tree(trace), *_asked(trace)))
    return trace


def check_ops(graph: fx.Graph, ops: Mapping[fx.Node, Op]) -> None:
    """Check what the nodes of a graph were read as.

    Raises:
        SpecError: a rule of this phase does not hold.
    """
    if checking():
        _raise("lifted", _operations(graph, ops))


def failed(phase: str, problem: str) -> SpecError:
    """The error for a rule that does not hold."""
    return SpecError(f"after the phase {phase!r}: {problem}. This is a defect of reptool; please report it")


def _raise(phase: str, problems: Any) -> None:
    for problem in problems:
        raise failed(phase, problem)


# --- captured
def _annotations(trace: Trace) -> Iterator[str]:
    for node in trace.graph.nodes:
        for key in REQUIRED:
            if key not in node.meta:
                yield f"{node.name} has no {key!r}"
        for key, value in node.meta.items():
            if key not in META:
                yield f"{node.name} has an annotation {key!r} that is none"
            elif not isinstance(value, META[key]):
                yield f"{node.name} has {key!r} of type {type(value).__name__}"
        if node.meta.get("kind") not in KINDS:
            yield f"{node.name} is of the unknown kind {node.meta['kind']!r}"
        if (node.meta.get("event") is None) != ("kept" in node.meta):
            yield f"{node.name} is in no call"
        yield from _of_its_operation(trace, node)


def _of_its_operation(trace: Trace, node: fx.Node) -> Iterator[str]:
    meta = node.meta
    told = meta.get("cast") or meta.get("ranks")
    if meta.get("const") and not told and not all(n.meta.get("const") for n in node.all_input_nodes):
        yield f"{node.name} is a constant and reads a value"
    if node.op == "call_module" and meta.get("module") is not _at(trace.root, str(node.target)):
        yield f"{node.name} calls another module than the one at {node.target!r}"
    if node.op == "get_attr" and "kept" not in meta:
        held = trace.constants.get(str(node.target), _at(trace.root, str(node.target)))
        if not isinstance(meta.get("tensor"), Tensor) or (held is not None and held is not meta["tensor"]):
            yield f"{node.name} reads another tensor than the one at {node.target!r}"
    where = meta.get("where")
    if where is not None and not (isinstance(where[0], CodeType) and isinstance(where[1], int)):
        yield f"{node.name} was called from no place in code"


def _at(root: nn.Module, path: str) -> Any:
    found: Any = root
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found


def _tree(trace: Trace) -> Iterator[str]:
    place = {node: i for i, node in enumerate(trace.graph.nodes)}
    seen: dict[fx.Node, Event] = {}
    last = -1
    if trace.top.parent is not None:
        yield f"{trace.top} is not the outermost call"
    for event in all_events(trace.top):
        for item in event.items:
            if isinstance(item, Event):
                if item.parent is not event:
                    yield f"{item} is in {event} and names another caller"
            elif item not in place:
                yield f"{item.name} is in {event} and not in the graph"
            elif item in seen:
                yield f"{item.name} is in {seen[item]} and in {event}"
            else:
                seen[item] = event
                if item.meta.get("event") is not event:
                    yield f"{item.name} is in {event} and names another call"
    for node in (n for n in trace.top.nodes() if n in place):
        if place[node] < last:
            yield f"{node.name} runs in another order than it stands in the graph"
        last = place[node]


def _asked(trace: Trace) -> Iterator[str]:
    held = set(trace.graph.nodes)
    for event in all_events(trace.top):
        for question in event.questions:
            if question.at is not None and (question.at not in held or question.at.name != question.node):
                yield f"{event} asks for the {question.what} of {question.node!r}, which is no node"
        for setting in event.settings:
            if not isinstance(_at(trace.root, setting.path), nn.Module):
                yield f"{event} reads {setting}, and there is no module at {setting.path!r}"
    for node in (*trace.outputs, *trace.escaped):
        if node not in held:
            yield f"{node.name} is given out and not in the graph"


# --- lifted
def _operations(graph: fx.Graph, ops: Mapping[fx.Node, Op]) -> Iterator[str]:
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node, op in ops.items():
        for source in op.sources:
            if node in place and source in place and place[source] >= place[node]:
                yield f"{node.name} reads {source.name}, which comes later"
        summed = op.whole if isinstance(op, Reduced) else op
        if isinstance(summed, Sum) and len(summed.maps) != len(summed.sources):
            yield f"{node.name} is a sum of {len(summed.sources)} values with {len(summed.maps)} maps"
        if isinstance(op, Affine) and (op.shape.weight is not None or op.shape.bias is not None):
            yield f"the shape of {node.name} holds weights"
