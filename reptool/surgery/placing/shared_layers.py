"""Shared layers: what is fused around one call of a layer has to stand around each of its calls."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from reptool.ir.ops import Affine
from reptool.plan.forms import Form
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal
from reptool.surgery.traced import Traced


def alike(traced: Traced) -> Callable[[fx.Node, Form], Refusal | None]:
    """A function that says why a form cannot become one layer: another call of its layers has no such form.

    One layer serves all calls of its module, so that a form whose only layers are called elsewhere without the rest of
    it is never chosen; what the calls have in common is.
    """
    ops = traced.found.ops
    calls: dict[str, list[fx.Node]] = {}
    for node, op in ops.items():
        if node.op == "call_module" and isinstance(op, Affine) and op.layer:
            calls.setdefault(str(node.target), []).append(node)
    several = {n: nodes for nodes in calls.values() if len(nodes) > 1 for n in nodes}
    patterns: dict[fx.Node, set[object]] = {n: set() for n in several}
    for forms in traced.found.forms.values() if several else ():
        for form in forms.values():
            for node in form.ops & several.keys():
                patterns[node].add(traced.pattern(traced.ordered(form)))

    def refused(node: fx.Node, form: Form) -> Refusal | None:
        layers = [n for n in form.ops if isinstance(op := ops[n], Affine) and op.layer]
        if not layers or not several.keys() >= set(layers):
            return None
        pattern = traced.pattern(traced.ordered(form))
        if any(all(pattern in patterns[o] for o in several[n] if o not in form.ops) for n in layers):
            return None
        return Refusal(
            Code.SHARED, f"{named(layers[0])} is called in places that would need different weights", (node.name,)
        )

    return refused
