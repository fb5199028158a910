"""Weight reads: methods that take no data and give weights or something computed from them, a penalty for example."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import fx

from reptool.ir.aliasing import mutated_argument
from reptool.ir.nodes import metadata_read
from reptool.ir.trace import Trace, all_events

WEIGHTS = frozenset(
    ["weight", "bias", "running_mean", "running_var", "parameters", "named_parameters", "buffers", "named_buffers"]
)
"""Names without which a method reads no weight."""


def read_values(graph: fx.Graph, changed: Callable[[str], bool]) -> bool:
    """Whether code that could not be run to its end had read more than shapes of changed tensors."""
    read = (n for n in graph.nodes if n.op == "get_attr" and changed(str(n.target)))
    return any(not metadata_read(user) for node in read for user in node.users)


def uses_values(trace: Trace, changed: Callable[[str], bool], covered: Collection[fx.Node] = ()) -> bool:
    """Whether a run gave out or wrote changed tensors, or values computed from them, or asked for their numbers.

    Asking for a shape is no such use.

    Args:
        trace: a run of the method.
        changed: whether the tensor at a path is another one after deploying.
        covered: operations of regions that the run shows whole, which are one layer then.
    """
    if any(changed(tensor) for event in all_events(trace.top) for tensor in event.valued):
        return True
    writes = [n for n in trace.graph.nodes if mutated_argument(n) is not None]
    stack = [*trace.outputs, *writes]
    seen: set[fx.Node] = set(stack)
    while stack:
        node = stack.pop()
        if node.op == "get_attr" and changed(str(node.target)):
            return True
        if metadata_read(node):
            continue
        sources = [n for n in node.all_input_nodes if not (node in covered and n.meta["const"])]
        stack += [n for n in sources if n not in seen]
        seen.update(sources)
    return False
