"""The pipeline: one module after another is traced and planned, all on a throwaway copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from reptool.api.pipeline.tracing import trace_of
from reptool.api.pipeline.unit import unit_of
from reptool.frontends.call_samples import Call, seen_calls
from reptool.ir.decisions import decide_for
from reptool.lift.registry import own_functions, own_modules
from reptool.models.copies import shallow_copy
from reptool.plan.options import Options
from reptool.probing.opaque import Responses, named_paths
from reptool.pysource.module_info import stock_forward, watched_classes
from reptool.refusal import Code, Refusal
from reptool.report.progress import phase
from reptool.report.progress import unit as begun
from reptool.rules.reading import Stated
from reptool.runtime.expect import KEPT
from reptool.safety.ownership import ownership
from reptool.surgery.units import GivenUp, Plan

NOTHING = GivenUp()


def make_plan(
    model: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any],
    options: Options,
    values: bool,
    cast: bool = False,
    given_up: GivenUp = NOTHING,
) -> Plan:  # long: the phases for one module after another
    """Work out everything for `model`, which stays untouched.

    Args:
        model: the user's model, in eval mode.
        args: example positional inputs, or None when nothing is known.
        kwargs: example keyword inputs.
        options: what to do.
        values: whether values may be looked at (not on the meta device).
        cast: whether each layer's values are worked out; one whose values do not fit its dtype is then left alone.
        given_up: regions that must not be formed, and why.
    """
    plan = Plan()
    scratch = shallow_copy(model)
    owned = ownership(scratch)
    watched = watched_classes(scratch)
    responses = Responses(named_paths(scratch, options.affine), values)
    stated = Stated(options.lifts, values)
    own = own_modules(scratch, stated.active)
    queue: list[tuple[str, nn.Module, tuple[Any, ...] | None, dict[str, Any]]] = [("", scratch, args, kwargs)]
    done: set[int] = set()
    seen: dict[str, Call] | None = None
    while queue:
        prefix, module, given, named = queue.pop(0)
        if id(module) in done:
            continue
        done.add(id(module))
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if not hasattr(module, "forward") or type(module).forward is nn.Module.forward:
            queue += _children(prefix, module)
            continue
        if prefix and stock_forward(module):
            continue
        if prefix and args is not None:
            seen = seen_calls(model, args, kwargs) if seen is None else seen
            given, named = seen.get(prefix, (None, {}))
        begun(prefix or "the whole model")
        decide_for(prefix)
        with phase("capture"):
            closed = responses.below(prefix) | _below(prefix, own)
            traced = trace_of(module, prefix, given, named, watched, closed, own_functions(stated.active))
        if isinstance(traced, str):
            plan.untraced[prefix] = traced
            queue += _children(prefix, module)
            continue
        recorder, trace = traced
        plan.untraced.pop(prefix, None)  # it could be followed by itself
        for path, why in trace.opaque.items():
            plan.untraced[f"{prefix}.{path}" if prefix else path] = why
        unit = unit_of(
            recorder, trace, options, (values, cast), owned.under(prefix), _above(scratch, prefix), plan,
            responses.under(prefix), stated, given_up,
        )  # fmt: skip
        plan.units.append(unit)
        gone = unit.gone()
        for path in [*unit.closed, *(p for p in trace.opaque if p not in gone)]:  # what is inside is fused by itself
            queue.append((f"{prefix}.{path}" if prefix else path, module.get_submodule(path), None, {}))
    plan.impulses = {**responses.why, **stated.why}
    plan.unseen = _unseen(plan, responses)
    return plan


def _unseen(plan: Plan, responses: Responses) -> list[Refusal]:
    """Modules named as affine that were asked by nobody: no code that could be followed calls them."""
    called = {
        ".".join(p for p in (u.prefix, str(n.target)) if p)
        for u in plan.units
        for n in u.trace.graph.nodes
        if n.op == "call_module"
    }
    sentence = "it is named as affine, and no code that could be followed calls it as a part"
    return [Refusal(Code.UNTRACEABLE, sentence, (p or "<root>",)) for p in sorted(responses.named - called)]


def _below(prefix: str, paths: Sequence[str]) -> frozenset[str]:
    """Of paths in the whole model, those inside of the module at `prefix`, by its own paths."""
    lead = f"{prefix}." if prefix else ""
    return frozenset(p[len(lead) :] for p in paths if p.startswith(lead) and p != prefix)


def _children(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module, tuple[Any, ...] | None, dict[str, Any]]]:
    children = [(n, m) for n, m in module.named_children() if n != KEPT]
    return [(f"{prefix}.{n}" if prefix else n, m, None, {}) for n, m in children]


def _above(model: nn.Module, prefix: str) -> dict[str, nn.Module]:
    """The modules that enclose the one at `prefix`."""
    parts = prefix.split(".") if prefix else []
    paths = [".".join(parts[:i]) for i in range(len(parts))]
    return {p: model.get_submodule(p) for p in paths}
