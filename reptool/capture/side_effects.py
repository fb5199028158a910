"""Side effects of a forward: constants that it writes, and values that are kept outside of the graph."""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from reptool.capture.optional_arguments import EVERY_MODULE, names_in
from reptool.ir.aliasing import mutated_argument, resolve, storage_of
from reptool.ir.kinds.casts import made_of
from reptool.ir.nodes import metadata_read
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import leaves_in, nodes_in

if TYPE_CHECKING:
    from reptool.capture.tracer import Recorder


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


def written_so_far(writes: Iterable[fx.Node], node: fx.Node) -> bool:
    """Whether something that a constant is made of has been written in place, by one of these operations."""
    written = [mutated_argument(w) for w in writes if not w._erased]  # what could not be followed was taken out again
    roots = {storage_of(w) for w in written if w is not None}
    stack, seen = [node], {node}
    while stack and roots:
        at = stack.pop()
        if storage_of(at) in roots:
            return True
        stack += [n for n in made_of(at) if n not in seen]
        seen.update(made_of(at))
    return False


def held_by(node: fx.Node) -> Iterator[str]:
    """The parameters and buffers whose numbers a constant is computed from."""
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        if at.op == "get_attr" and not str(at.target).startswith("_constant"):
            yield str(at.target)
        if not metadata_read(at):
            stack += [n for n in at.all_input_nodes if n not in seen]
            seen.update(at.all_input_nodes)


def metadata_of(node: fx.Node) -> Iterator[tuple[fx.Node, str]]:
    """Parameters and buffers, with what is asked of each beside its numbers and sizes to compute a constant."""
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        held, name = at.args[:2] if at.target is getattr and at.meta.get("kind") != "tensor" else (None, None)
        while isinstance(held, fx.Node) and held.target is getattr and held.args[1] == "data":
            held = held.args[0]
        is_own = isinstance(held, fx.Node) and held.op == "get_attr" and not str(held.target).startswith("_constant")
        if isinstance(held, fx.Node) and is_own and name not in ("shape", "ndim"):
            yield held, str(name)
        told = [n for n in at.all_input_nodes if n.meta["const"] or n.meta.get("kind") not in ("tensor", "sequence")]
        stack += [n for n in told if n not in seen]
        seen.update(told)


@contextmanager
def as_new() -> Iterator[None]:
    """While this is open, what there was before is no garbage: looking for what code keeps takes no time for it."""
    if gc.get_freeze_count():  # the user's own
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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


Contents = dict[int, dict[str, tuple[Any, ...]]]


def contents_of(root: nn.Module) -> Contents:
    """What the lists, dictionaries and sets hold that modules have as attributes."""
    return {
        id(m): {n: _items(v) for n, v in vars(m).items() if n not in EVERY_MODULE and _holds(v)} for m in root.modules()
    }


def written_contents(before: Contents, top: Event) -> None:
    """Code that adds to a list or a dictionary of its module does more than give a value."""
    for event in all_events(top):
        known = before.get(id(event.module))
        if not known:
            continue
        held = vars(event.module)
        changed = {n for n, items in known.items() if not _same_items(items, _items(held.get(n)))}
        changed &= names_in(getattr(type(event.module), event.method, None)) if changed else changed
        event.effects += [f"changes what {n!r} holds" for n in sorted(changed)]


def _holds(value: Any) -> bool:
    return isinstance(value, (list, dict, set))


def _items(value: Any) -> tuple[Any, ...]:
    if isinstance(value, dict):
        return (*value, *value.values())
    return tuple(value) if _holds(value) else (value,)


def _same_items(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
