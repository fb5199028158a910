"""`Values`: what the values of a trace are in the method that is written."""

from __future__ import annotations

from typing import Any

from torch import fx

from reptool.ir.aliasing import Reads
from reptool.ir.nodes import is_size_like, metadata_read, name_of
from reptool.ir.trace import Event
from reptool.ir.walk import nodes_in
from reptool.pysource.places import named
from reptool.rewrite.codegen.edits import Edits
from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.printer import read_item
from reptool.runtime.containers import Place, filled, leaves, mapped, parts, read_key, template_of


class Values:
    """The graph of the method, and what each value of the trace is in it.

    Args:
        event: the call whose method is written.
        edits: what is left out.
        reads: the resolved reads of the trace.
        prefix: where in the model the traced module is; "" where it is the model itself.
    """

    def __init__(self, event: Event, edits: Edits, reads: Reads, prefix: str) -> None:
        self.event, self.edits, self.reads, self.prefix = event, edits, reads, prefix
        self.graph = fx.Graph()
        self.map: dict[fx.Node, Any] = {}
        self.now = 0.0  # where in the trace what is written down stands
        self.read: dict[fx.Node, str] = {}  # what reads a tensor -> its path in the trace
        self.pure: set[fx.Node] = set()  # what computes a constant

    def unpack(self, value: Any, made: fx.Node) -> None:
        """Map the nodes inside a structure to reads of `made`."""
        if isinstance(value, fx.Node):
            made.meta.setdefault("kind", value.meta.get("kind"))
            self.map[value] = made
            return
        for step, part in parts(value) or ():
            if not any(True for _ in nodes_in(part)):
                continue
            if step.kind == "attribute":
                read = self.graph.call_function(getattr, (made, step.name))
            else:
                direct = step.kind == "index" or type(value) is dict
                read = self.graph.call_function(read_item if direct else read_key, (made, step.name))
            self.unpack(part, read)

    def relative(self, path: str) -> str:
        """The path of a module or tensor below the module whose method is written."""
        base = self.event.path
        if not base:
            return path
        if not path.startswith(base + "."):
            known = self._other_name(path)
            if known is not None:
                return known
            raise CannotCutError(f"it uses {'.'.join(p for p in (self.prefix, path) if p)!r}, which lies outside of it")
        return path[len(base) + 1 :]

    def _other_name(self, path: str) -> str | None:
        """The name by which the module itself holds a module the trace knows by another name (a shared layer)."""
        *_, top = self.event.ancestors()
        owner, _, attribute = path.rpartition(".")
        names = {id(m): n for n, m in self.event.module.named_modules(remove_duplicate=False) if n}
        try:
            whole, part = top.module, top.module.get_submodule(owner)
            found = getattr(part, attribute, None)
        except AttributeError:
            return None
        if found is not None and found is not whole and id(found) in names:
            return names[id(found)]
        return f"{names[id(part)]}.{attribute}" if id(part) in names else None

    def made(self, op: str, target: Any, args: Any, kwargs: Any, kind: str | None) -> fx.Node:
        """A new node of the method's graph."""
        made = self.graph.create_node(op, target, args, kwargs)
        made.meta["kind"] = kind
        return made

    def copy(self, node: fx.Node) -> None:
        """Write an operation down as it is, on what its arguments are now."""
        target = self.relative(str(node.target)) if node.op == "call_module" else node.target
        self.map[node] = self.made(node.op, target, *self._arguments(node), node.meta.get("kind"))

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        held = self.edits.bare.get(node, node)
        return (
            fx.node.map_arg(held.args, lambda n: self.lookup(node, n)),
            fx.node.map_arg(held.kwargs, lambda n: self.lookup(node, n)),
        )

    def lookup_all(self, value: Any) -> Any:
        """What an argument or output is now: nodes looked up, containers of other classes built anew at every call."""
        if isinstance(value, fx.Node):
            return self.lookup(None, value)
        held = parts(value)
        if held is None:
            return value
        if type(value) in (tuple, list):
            return type(value)(map(self.lookup_all, value))
        if type(value) is dict:
            return {k: self.lookup_all(v) for k, v in value.items()}
        if isinstance(value, slice):
            return slice(*map(self.lookup_all, (value.start, value.stop, value.step)))
        if hasattr(type(value), "_fields"):
            return type(value)(*map(self.lookup_all, value))
        return self._built(value)

    def _built(self, value: Any) -> fx.Node:
        """A structure of the user's own classes, from the values in it."""
        found = list(dict.fromkeys(v for v in leaves(value) if isinstance(v, fx.Node)))
        if not found and not isinstance(value, (tuple, list, dict)):
            raise CannotCutError(f"a {type(value).__name__} cannot be written down")
        check = Constants()
        for leaf in leaves(value):
            if not isinstance(leaf, fx.Node):
                check.text(leaf, f"what a {type(value).__name__} holds")
        places = {node: Place(i) for i, node in enumerate(found)}
        structure = mapped(value, lambda v: places[v] if isinstance(v, fx.Node) else v)
        values: list[Any] = [template_of(structure), *(self.lookup(None, n) for n in found)]
        return self.graph.call_function(filled, tuple(values))

    def lookup(self, user: fx.Node | None, node: fx.Node) -> Any:
        """What a value is where `user` reads it; where None is given, at the place that is written down."""
        seen = self.reads.of(user, node) if user is not None else self.reads.at(self.now, node)
        if seen is not None and seen is not node and name_of(seen) != "setitem":
            if seen in self.map:
                return self.map[seen]
            if seen in self.edits.bypass or seen in self.edits.dead:
                raise CannotCutError(f"it reads {named(node)}, which was written in place elsewhere")
        if node in self.map:
            return self.map[node]
        if node in self.edits.bypass and node not in self.edits.layers.keys() | self.edits.joined.keys():
            return self.lookup(user, self.edits.bypass[node])
        if node.meta["const"]:
            return self._constant(node)
        raise CannotCutError(f"it needs {named(node)}, which is computed elsewhere")

    def _constant(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            target = str(node.target)
            held = target in self.edits.constants
            self.map[node] = self.graph.get_attr(target if held else self.relative(target))
            self.read[self.map[node]] = target
        else:
            self.copy(node)
            self.pure.add(self.map[node])
        return self.map[node]

    def tensors_read(self) -> list[str]:
        """The tensors that are read once all is left out that only tells something nobody uses."""
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node in self.pure or _only_tells(node)):
                self.graph.erase_node(node)
        return [target for node, target in self.read.items() if not node._erased]


def _only_tells(node: fx.Node) -> bool:
    """Whether a node reads a tensor or an item, or computes nothing but what code asked of values."""
    if node.op == "get_attr" or node.target in (read_item, read_key):
        return True
    return name_of(node) != "_assert" and bool(metadata_read(node) or is_size_like(node))
