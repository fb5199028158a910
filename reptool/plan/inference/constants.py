"""Constants: their values as the model computes them and in float64, and the parameters they are computed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.graph_builder import Writing
from reptool.ir.kinds.casts import is_cast, is_made_like, made_of
from reptool.ir.nodes import weight_argument
from reptool.ir.trace import Unanswerable
from reptool.models.copies import full_copy


class Constants:
    """Answers about the constants of one trace, each worked out once.

    Args:
        recorder: of the trace.
    """

    def __init__(self, recorder: Writing) -> None:
        self.recorder = recorder
        self._exact: dict[fx.Node, Any] = {}
        self._cones: dict[fx.Node, tuple[str, ...]] = {}

    def constant(self, node: fx.Node) -> Any:
        """The value of a constant node as the model computes it; None when it cannot be computed."""
        try:
            return self.recorder.evaluate(node)
        except Unanswerable:
            return None

    def exact(self, node: fx.Node) -> Any:
        """The value of a constant node computed in float64 from its parameters."""
        for n in self._missing(node):
            if n.op == "get_attr":
                value = n.meta["tensor"].detach()
                self._exact[n] = value.double() if value.is_floating_point() else value
                continue
            if is_cast(n):
                self._exact[n] = self._rounded(n)
                continue
            value = self.constant(n) if is_made_like(n) else self._computed(n)
            self._exact[n] = value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        return self._exact[node]

    def _computed(self, node: fx.Node) -> Any:
        """What one operation gives for exact values; as the model computes it where it refuses float64."""
        named = fx.node.map_aggregate((node.args, node.kwargs), lambda a: self._in_double(node, a))
        found: Any = fx.node.map_arg(named, lambda n: self._exact[n] if n.meta["const"] else self.constant(n))
        args, kwargs = found
        try:
            with torch.no_grad():
                if node.op == "call_module":
                    return self._double_module(node)(*args, **kwargs)
                if node.op == "call_method" and node.target == "float":
                    return args[0].to(self._in_double(node, torch.float32))
                return self.recorder.known.run(node, args, kwargs)
        except Exception:
            native = self.constant(node)
            if native is None:
                raise
            return native

    def _in_double(self, node: fx.Node, given: Any) -> Any:
        """An argument; float64 for a dtype that the operands fit in, which rounds none of them."""
        if not isinstance(given, torch.dtype) or not given.is_floating_point:
            return given
        dtypes = [v.dtype for v in map(self.constant, node.all_input_nodes) if isinstance(v, Tensor)]
        fits = dtypes and all(d.is_floating_point and torch.promote_types(d, given) == given for d in dtypes)
        return torch.float64 if fits else given

    def _rounded(self, node: fx.Node) -> Any:
        """What a cast gives: the constant rounded to the dtype it is cast to, unless it is of that dtype."""
        source: Any = node.args[0]
        native, before, exact = self.constant(node), self.constant(source), self._exact[source]
        if not all(isinstance(v, Tensor) for v in (native, before, exact)):
            return None
        return (exact if native.dtype == before.dtype else exact.to(native.dtype)).double()

    def _missing(self, node: fx.Node) -> list[fx.Node]:
        order: list[fx.Node] = []
        stack = [(node, False)]
        seen: set[fx.Node] = set()
        while stack:
            n, done = stack.pop()
            if done:
                order.append(n)
            elif n not in seen and n not in self._exact:
                seen.add(n)
                stack.append((n, True))
                stack += [(i, False) for i in made_of(n)]
        return order

    @staticmethod
    def _double_module(node: fx.Node) -> nn.Module:
        return full_copy(node.meta["module"]).double()

    def cone(self, node: fx.Node) -> tuple[str, ...]:
        """Names of the parameters, buffers and modules a constant is computed from."""
        if node not in self._cones:
            found: dict[str, None] = {}
            stack, seen = [node], {node}
            while stack:
                n = stack.pop()
                if n.op in ("get_attr", "call_module"):
                    found[str(n.target)] = None
                for i in made_of(n):
                    if i not in seen:
                        seen.add(i)
                        stack.append(i)
            self._cones[node] = tuple(found)
        return self._cones[node]

    def taken(self, node: fx.Node) -> list[fx.Node]:
        """The values whose dtype a constant is taken to have, where that is not known."""
        if not node.meta.get("cast"):
            return []
        found, stack = [], [node]
        while stack:
            n = stack.pop()
            if n in self.recorder.known.taken:
                found += [i for like in n.all_input_nodes if not like.meta["const"] for i in like.all_input_nodes]
            stack += made_of(n)
        return found

    def follows(self, node: fx.Node) -> bool:
        """Whether a functional layer brings its weight to the dtype of a value of which no dtype is known."""
        weight = None if node.op == "call_module" else weight_argument(node)
        return weight is not None and weight.meta["const"] and bool(self.taken(weight))

    def only_follows(self, node: fx.Node) -> bool:
        """Whether nothing is computed at every call but the cast of `follows`."""
        weight = weight_argument(node) if self.follows(node) else None
        held = weight.args[0] if weight is not None and is_cast(weight) else None
        return isinstance(held, fx.Node) and held.op == "get_attr"
