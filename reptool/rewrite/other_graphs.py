"""Graphs that a GraphModule keeps beside the one that it runs (feature extractors keep one for each mode).

Such a graph is code that a surgery did not see. One that is the same code becomes what the running graph became; one
that is not may use the layers that were fused one by one, and raises when it is run.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from reptool.runtime.expect import _sealed


def graphs_of(root: nn.Module) -> dict[fx.GraphModule, fx.Graph]:
    """The running graph of every GraphModule in `root` that keeps others."""
    modules = [m for m in root.modules() if isinstance(m, fx.GraphModule)]
    return {m: m.graph for m in modules if any(v is not m.graph for v in _kept(m).values())}


def settle(before: dict[fx.GraphModule, fx.Graph]) -> None:
    """Bring the other graphs of modules that were changed to what the running one is now.

    Args:
        before: of `graphs_of`, before the change.
    """
    for module, old in before.items():
        for name, graph in _kept(module).items():
            if graph is not module.graph:
                same = graph is old or _code(graph) == _code(old)
                where = f"the {name} of {type(module).__name__}"
                vars(module)[name] = module.graph if same else _sealed_graph(graph, where, module.graph._tracer_cls)


def _kept(module: fx.GraphModule) -> dict[str, fx.Graph]:
    return {name: value for name, value in vars(module).items() if isinstance(value, fx.Graph)}


def _code(graph: fx.Graph) -> tuple[str, list[Any]]:
    return graph.python_code("self").src, [n.target for n in graph.nodes]


def _sealed_graph(graph: fx.Graph, where: str, tracer: Any) -> fx.Graph:
    made = fx.Graph(tracer_cls=tracer)
    for node in graph.nodes:
        if node.op == "placeholder":
            made.node_copy(node)
    made.call_function(_sealed, (where,))
    made.output(None)
    return made
