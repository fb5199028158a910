"""The rules by name, and which of them a form uses."""

from __future__ import annotations

from torch import fx

from reptool.algebra.kernel import Axis
from reptool.ir.ops import Affine, Concat, Pieces, Reduced, Stack, Sum, View
from reptool.plan.candidates import Analysis, forms_of
from reptool.plan.forms import Form
from reptool.rules.lifting import BUILT_IN

RULES = (
    "conv_bn", "bn_conv", "branch_add", "branch_concat", "kernel_size", "sequential", "shortcut", "avg_pool", "scale",
    "padding", "slice", "linear", "weights", "impulse", "distribute", "upsample", "resample",
)  # fmt: skip
BUILT_IN.update(RULES)
DEARER = frozenset({"branch_add", "branch_concat", "kernel_size", "sequential", "avg_pool"})
"""Those by which one layer may cost more than the operations in its place."""


def rules_of(form: Form, found: Analysis) -> frozenset[str]:
    """Names of the rules a form uses."""
    rules: set[str] = {"resample"} if form.around else {"upsample"} if form.joined else set()
    position = found.reads.position
    ops = sorted(form.ops - (form.joined.ops if form.joined else frozenset()), key=position.__getitem__)
    layers = [n for n in ops if isinstance(found.ops[n], Affine) and found.ops[n].layer]  # type: ignore[union-attr]
    for node in ops:
        op = found.ops[node]
        if isinstance(op, Affine) and op.rule:
            rules.add(op.rule)
        if node in found.shares:
            rules.add("distribute")
        if isinstance(op, Affine):
            behind = _behind_layer(node, form, found)
            rules |= {
                "bn": {"conv_bn" if behind else "bn_conv"},
                "avg_pool": set() if form.around else {"avg_pool"},
                "scale": {"scale"},
                "padding": {"padding"},
                "slice": {"slice"},
                "upsample": set() if form.around else {"upsample"},
                "impulse": {"impulse"},
            }.get(op.paradigm, set())
            if op.computed and op.work is None and not op.rule:
                rules.add("weights")
            if op.layer and any(n is not node and n in _upstream(node, form, found) for n in layers):
                rules.add("sequential")
        elif isinstance(op, (Stack, Pieces)):
            continue
        elif isinstance(op, (Sum, Reduced)):
            op = op.whole if isinstance(op, Reduced) else op
            rules.add("branch_add")
            if any(_past_identities(s, found) is form.root for s in op.sources):
                rules.add("shortcut")
            rules |= _sizes(op, form, found)
        elif isinstance(op, View):
            rules.add("linear")
        elif isinstance(op, Concat):
            rules |= {"branch_concat", *_sizes(op, form, found)}
        else:
            rules.add("padding")
    return frozenset(rules)


def _sizes(op: Sum | Concat, form: Form, found: Analysis) -> set[str]:
    """The rule that brings branches to one kernel size, where they differ."""
    parts = [forms_of(found, s) for s in op.sources]
    shared = [r for r in parts[0] if all(r in p for p in parts) and (r is form.root or r in form.ops)]
    root = form.root if form.root in shared else shared[0]  # a crop behind the sum may have brought the rest
    plain = (Axis(),) * len(form.shape.axes or ())
    sizes = {tuple(a.kernel_size for a in p[root].shape.axes or plain) for p in parts}
    return {"kernel_size"} if len(sizes) > 1 else set()


def _past_identities(node: fx.Node, found: Analysis) -> fx.Node:
    """The value that `node` hands on as it is."""
    op = found.ops.get(node)
    while isinstance(op, Affine) and op.paradigm == "identity":
        node = op.source
        op = found.ops.get(node)
    return node


def _upstream(node: fx.Node, form: Form, found: Analysis) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = list(found.ops[node].sources)
    while stack:
        n = stack.pop()
        if n in form.ops and n not in seen:
            seen.add(n)
            stack += found.ops[n].sources
    return seen


def _behind_layer(node: fx.Node, form: Form, found: Analysis) -> bool:
    return any(isinstance(found.ops[n], Affine) and found.ops[n].layer for n in _upstream(node, form, found))  # type: ignore[union-attr]
