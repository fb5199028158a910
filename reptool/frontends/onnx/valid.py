"""Whether an ONNX graph is one: every node reads what stands in front of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def bodies(node: Any) -> list[Any]:
    """The graphs in the attributes of a node."""
    held = [a.value for a in node.attributes.values() if a.type.name in ("GRAPH", "GRAPHS")]
    return [g for v in held for g in (v if isinstance(v, (list, tuple)) else [v])]


def damage(graph: Any, outer: Iterable[Any] = ()) -> str | None:
    """Why a graph is none: a node reads what nothing computes, or what is computed behind it; None where it is one.

    Args:
        graph: an `onnx_ir.Graph`.
        outer: values of the graphs around it.
    """
    known = {*outer, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        missing = next((v for v in node.inputs if v is not None and v not in known), None)
        if missing is not None:
            return f"{node.op_type} {node.name!r} reads {missing.name!r}, which nothing in front of it computes"
        within = next((why for body in bodies(node) if (why := damage(body, known)) is not None), None)
        if within is not None:
            return within
        known.update(node.outputs)
    missing = next((v for v in graph.outputs if v not in known), None)
    return None if missing is None else f"nothing computes its output {missing.name!r}"
