"""Exposed values: inner values that a module call returns, whether or not this model's own code uses them."""

from __future__ import annotations

from torch import fx

from reptool.ir.aliasing import Reads
from reptool.ir.nodes import is_size_like, metadata_read
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in


def handed_out(top: Event, reads: Reads) -> set[fx.Node]:
    """Values that a call inside gives out after it read them itself, whether or not its caller wants them here.

    An encoder's list of features is an example, of which this decoder takes the last: the encoder by itself gives all.
    """
    found: set[fx.Node] = set()
    for event in all_events(top):
        given = list(nodes_in(event.output)) if event is not top else []
        written = any(n in reads.versions for n in given)
        end = max((reads.position[n] + 1 for n in event.nodes()), default=0.0) if written else 0.0
        for node in given:
            value = reads.at(end, node)
            if value is not None and _inside(value, event):
                users = (n for n in reads.readers.get(value, ()) if _inside(n, event))
                if any(not metadata_read(n) and not is_size_like(n) for n in users):
                    found.add(value)
    return found


def given_by_methods(top: Event) -> set[fx.Node]:
    """Values that methods give out which anybody may call by themselves (``forward_features``)."""
    public = (e for e in all_events(top) if e.method != "forward" and not e.method.startswith("_"))
    return {n for e in public for n in nodes_in(e.output) if _inside(n, e)}


def _inside(node: fx.Node, event: Event) -> bool:
    caller: Event | None = node.meta["event"]
    return node.op != "output" and caller is not None and event in caller.ancestors()
