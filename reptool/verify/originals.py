"""The original operations of a trace, run in float64."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from reptool.ir.aliasing import Reads
from reptool.models.copies import full_copy
from reptool.plan.inference import Facts


class Originals:
    """Runs original operations in float64."""

    def __init__(self, facts: Facts, reads: Reads) -> None:
        self.facts, self.reads = facts, reads
        self.modules: dict[fx.Node, nn.Module] = {}

    def _read_as(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        """The values that a node may see where it reads one, the right one first."""
        seen = self.reads.of(node, value)
        return [value] if seen is None else [seen, value]

    def arguments(self, node: fx.Node, memo: dict[fx.Node, Any]) -> tuple[Any, Any]:
        """What a node is called with."""

        def value(n: fx.Node) -> Any:
            for candidate in self._read_as(node, n):
                if candidate in memo:
                    return memo[candidate]
            if n.meta["const"]:
                return self.facts.exact(n)
            memo[n] = self.run(n, memo)
            return memo[n]

        return fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)

    def run(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        """The value of a node, from the values in `memo` and those that can be worked out from them."""
        args, kwargs = self.arguments(node, memo)
        if node.op == "call_module":
            if node not in self.modules:
                self.modules[node] = _double(node.meta["module"])
            return self.modules[node](*args, **kwargs)
        if self.reads.mutates.get(node) is not None:
            args = (args[0].clone(), *args[1:])
        result = self.facts.recorder.known.run(node, args, kwargs)
        return args[0] if result is None else result


def _double(module: nn.Module) -> nn.Module:
    return full_copy(module).double().cpu()
