"""`Body`: the calls and operations of the method that is written."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import fx, nn

from reptool.ir.aliasing import Reads
from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.nodes import is_inert, is_size_like, metadata_read, name_of
from reptool.ir.trace import Event, all_events, questions_of
from reptool.ir.walk import nodes_in
from reptool.plan.resolutions.joined import Joined
from reptool.rewrite.codegen.edits import Edits, is_dead, is_told
from reptool.rewrite.codegen.values import Values
from reptool.rewrite.constants import CannotCutError
from reptool.runtime.layers.side_by_side import side_by_side


class Body(Values):
    """Writes down what a call did, but for what is left out.

    Args:
        event, edits, reads, prefix: see `Values`.
        fallback: whether a fallback runs where an answer is another: then no guard says that it is the same.
    """

    def __init__(self, event: Event, edits: Edits, reads: Reads, prefix: str, fallback: bool) -> None:
        super().__init__(event, edits, reads, prefix)
        self.fallback = fallback
        self.left_out: set[Event] = set()  # calls that are made no more
        self.handed_on: list[Event] = []  # those of them that only handed on what they were given

    def call(self, child: Event) -> None:
        """Write down a call of a child, or of another method of the module."""
        if child in self.edits.omitted or is_dead(child, self.edits):
            self.left_out.update(all_events(child))
            return
        if child in self.edits.folded:
            self.left_out.update(all_events(child))
            self.handed_on += all_events(child)
            return
        handed = any(n in self.map for n in nodes_in(child.output))
        told = [q for e in all_events(child) for q in questions_of(e)]
        idle = (told and self._only_hands_on(child)) or self._is_constant(child)
        if idle and not self.fallback and all(map(asks_kinds, told)):
            self.left_out.update(all_events(child))
            self.handed_on += all_events(child)
            return
        if handed and told:
            raise CannotCutError(f"{child.place} hands on what it is given, and asks something: it may not always")
        self.now = min((self.reads.position[n] for n in child.nodes()), default=self.now)
        args, kwargs = self.lookup_all(child.args), self.lookup_all(child.kwargs)
        relative = self.relative(child.path) if child.method == "forward" else child.method
        if child.method != "forward" and child.module is not self.event.module:
            relative = f"{self.relative(child.path)}.{child.method}"
        self.unpack(child.output, self.graph.create_node("call_module", relative, args, kwargs))

    def _only_hands_on(self, child: Event) -> bool:
        """Whether a call computes nothing, does nothing else and gives a constant, or back what it was given."""
        computes = any(not n.meta["const"] and not is_inert(n) for n in child.nodes())
        acts = any(e.effects or e.hooked for e in all_events(child))
        if computes or acts or not isinstance(child.output, fx.Node):
            return False
        known = child.output in self.map or child.output in nodes_in((child.args, child.kwargs))
        return known or bool(child.output.meta["const"])

    def _is_constant(self, child: Event) -> bool:
        """Whether a call makes nothing but constants, which no code that is written down reads."""
        acts = any(e.effects or e.hooked for e in all_events(child))
        if acts or not all(is_inert(n) or is_told(n) for n in child.nodes()):
            return False
        gone = self.edits.bypass.keys() | self.edits.dead
        seen, stack = set[fx.Node](), list(nodes_in(child.output))
        if not stack:
            return False
        while stack:
            node = stack.pop()
            if not node.meta["const"]:
                return False
            seen.add(node)
            stack += [u for u in node.users if u not in seen and u not in gone and not is_inert(u)]
        return True

    def node(self, node: fx.Node) -> None:
        """Write down an operation, or what stands in for it."""
        if node in self.edits.dead or node.meta["const"]:
            return
        if node in self.edits.layers:
            self._layer(node)
        elif node in self.edits.joined:
            self._side_by_side(self.edits.joined[node])
        elif node in self.edits.bypass:
            self.map[node] = self.lookup(node, self.edits.bypass[node])
            if node in self.edits.promoted:
                dtype = self.graph.call_function(torch.result_type, (self.map[node], 1.0))
                self.map[node] = self.graph.call_method("to", (self.map[node], dtype))
        elif name_of(node) == "barrier":
            self.map[node] = self.lookup(node, node.args[0])  # type: ignore[arg-type]
        else:
            self.copy(node)

    def _layer(self, node: fx.Node) -> None:
        function, (weight, bias), constants = self.edits.layers[node]
        if "beside" in constants:
            self._beside(node, weight, bias, constants["beside"])
            return
        source = self.lookup(node, self.edits.bypass[node])
        read: list[Any] = [
            self.graph.get_attr(weight),
            None if bias is None else self.graph.get_attr(bias),
        ]
        for i in range(constants.get("cast", 0)):  # the weight, and the bias where there is one
            read[i] = self.graph.call_method("to", (read[i], source))
        outer = constants.get("outer")
        if outer is not None:
            source = self.graph.call_function(nn.functional.pad, (source, list(outer), constants["outer_mode"]))
        rest = {k: v for k, v in constants.items() if not k.startswith("outer") and k != "cast"}
        self.map[node] = self.made("call_function", function, (source, *read), rest, "tensor")

    def _side_by_side(self, joined: Joined) -> None:
        """Values of several resolutions as they are, with the sizes that upsampling them is told to give."""
        given = []
        for value, up in zip(joined.values, joined.ups, strict=True):
            read = up if up is not None and up in self.map else value
            given.append(self.lookup(joined.node if read is up or up is None else up, read))
        sizes = []
        for up, size in zip(joined.ups, joined.sizes(), strict=True):
            held = None if up is None else fx.node.map_arg(size, partial(self._number, up))
            sizes.append(tuple(held) if isinstance(held, list) else held)
        args = (tuple(given), joined.factors, tuple(sizes))
        self.map[joined.node] = self.made("call_function", side_by_side, args, {}, "sequence")

    def _number(self, user: fx.Node, node: fx.Node) -> Any:
        """A size that code asked for, which is asked for here where that is code of a method that runs no more."""
        if node not in self.map and (metadata_read(node) or is_size_like(node)):
            for read in node.all_input_nodes:
                self._number(node, read)
            self.copy(node)
        return self.lookup(user, node)

    def _beside(self, node: fx.Node, weight: str, bias: str | None, at: dict[str, int]) -> None:
        """A layer that reads other values as well: the same call, with other values at these places."""
        held = {at["weight"]: self.graph.get_attr(weight)}
        if bias is not None:
            held[at["bias"]] = self.graph.get_attr(bias)
        args = tuple(
            held[i] if i in held else fx.node.map_arg(a, lambda n: self.lookup(node, n))
            for i, a in enumerate(node.args)
        )
        self.map[node] = self.made(node.op, node.target, args, {}, "tensor")
