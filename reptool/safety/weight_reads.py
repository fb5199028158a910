"""Readings: methods that take no data and compute something from weights, a penalty for training for example."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from reptool.ir.aliasing import mutated_argument
from reptool.ir.nodes import metadata_read
from reptool.ir.trace import Trace

WEIGHTS = frozenset(
    ["weight", "bias", "running_mean", "running_var", "parameters", "named_parameters", "buffers", "named_buffers"]
)
"""Names without which a method reads no weight."""


def computes_from(trace: Trace, changed: Callable[[str], bool]) -> bool:
    """Whether what a run gave out or wrote was computed from the values of changed tensors, or one of them written.

    A tensor that is handed out as it is, or asked for its shape, is no such reading.

    Args:
        trace: a run of the method.
        changed: whether the tensor at a path is another one after deploying.
    """
    writes = [n for n in trace.graph.nodes if mutated_argument(n) is not None]
    stack = [*(n for n in trace.outputs if n.op != "get_attr"), *writes]
    seen: set[fx.Node] = set(stack)
    while stack:
        node = stack.pop()
        if node.op == "get_attr" and changed(str(node.target)):
            return True
        if metadata_read(node):
            continue
        stack += [n for n in node.all_input_nodes if n not in seen]
        seen.update(node.all_input_nodes)
    return False
