"""What a forward leaves behind beside its outputs: constants it writes, values somebody keeps."""

from __future__ import annotations

import gc
import operator
from typing import TYPE_CHECKING

from torch import fx

from reptool._nodes import is_size_like, metadata_read
from reptool.casts import made_of
from reptool.reads import Reads, mutated_argument, resolve
from reptool.trace import Event, all_events
from reptool.walk import leaves_in, nodes_in

if TYPE_CHECKING:
    from reptool.capture import Recorder


def written_constants(graph: fx.Graph) -> None:
    """A parameter, buffer or constant that the forward writes is none: it differs from call to call.

    One computed in this call (``w = self.a.clone(); w[0] = 0``) differs before and after the write, and is none either.
    """
    writes = [n for n in graph.nodes if (w := mutated_argument(n)) is not None and w.meta["const"]]
    if not writes:
        return
    reads = resolve(graph)
    stack = []
    for node in writes:
        written = reads.mutates[node]
        root = reads.storage.get(written, written)
        if root.op == "get_attr":
            node.meta["event"].effects.append(f"writes {root.target!r} in place")
        if root.op == "get_attr" or not _is_step(node, written, root):
            stack.append(root)
    while stack:
        node = stack.pop()
        if node.meta["const"]:
            node.meta["const"] = False
            stack += node.users


def _is_step(node: fx.Node, written: fx.Node, root: fx.Node) -> bool:
    """Whether nobody but `node` reads what it writes: ``self.var.add(eps).rsqrt_()`` is as good as ``.rsqrt()``."""
    whole = written is root or mutated_argument(written) is not None
    return whole and node.target is not operator.setitem and "out" not in node.kwargs and len(written.users) == 1


def written_so_far(graph: fx.Graph, node: fx.Node) -> bool:
    """Whether something that a constant is made of has been written in place."""
    writes = [w for n in graph.nodes if (w := mutated_argument(n)) is not None and w.meta["const"]]
    if not writes:
        return False
    storage = resolve(graph).storage
    roots = {storage.get(w, w) for w in writes}
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        if storage.get(at, at) in roots:
            return True
        stack += [n for n in made_of(at) if n not in seen]
        seen.update(made_of(at))
    return False


def kept_outside(recorder: Recorder, top: Event) -> None:
    """Values that somebody still holds (a list, a global, a closure) are read outside of the graph."""
    if not any(ref() is not None for ref in recorder.given):
        return
    gc.collect()
    events = list(all_events(top))
    ours = {id(v) for e in events for part in (e.args, e.kwargs, e.output) for v in leaves_in(part)}
    alive = [v for ref in recorder.given if (v := ref()) is not None and id(v) not in ours]
    here = set(recorder.graph.nodes)
    kept = {v.node for v in alive if v._node is not None and v._node in here and not v._node.meta["const"]}
    recorder.escapes |= kept
    for event in events:
        seen = {n for part in (event.args, event.kwargs) for n in nodes_in(part)}
        for item in event.items:
            seen |= set(nodes_in(item.output)) if isinstance(item, Event) else {item}
        if seen & kept:
            event.effects.append("keeps a value outside of the model's outputs")


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


def _inside(node: fx.Node, event: Event) -> bool:
    return node.op != "output" and event in node.meta["event"].ancestors()
