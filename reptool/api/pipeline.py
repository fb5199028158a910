"""The pipeline: capture, lift, choose, check and work out the surgery of one model, all on a throwaway copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from reptool.api.planning import Planning
from reptool.capture.exposed_values import handed_out
from reptool.capture.own_state import held_by, leaves_no_state
from reptool.capture.replay_check import mark_state
from reptool.capture.tracer import Recorder
from reptool.frontends.call_samples import Call, made_up, seen_calls
from reptool.frontends.inputs import placeholders, unknown_inputs
from reptool.ir.aliasing import resolve
from reptool.ir.decisions import decide_for
from reptool.ir.ops import Affine, HandedOn
from reptool.ir.trace import CaptureLimitError, Event, Trace, Unanswerable, all_events
from reptool.lift.registry import own_functions, own_modules
from reptool.models.copies import shallow_copy
from reptool.passages.own_affines import OwnAffines
from reptool.plan.candidates import Analysis, analyse, out_of_reach
from reptool.plan.inference.facts import Facts
from reptool.plan.options import Options
from reptool.plan.settled import drop_settled
from reptool.plan.spreading.code import asked_around, run_again
from reptool.plan.spreading.spreads import Outcome, Spreads
from reptool.probing.opaque import Responses, named_paths
from reptool.pysource.module_info import stock_forward, watched_classes
from reptool.pysource.places import asked, named, said
from reptool.refusal import Code, Refusal
from reptool.report.left import left_over, why_left
from reptool.report.progress import phase
from reptool.report.progress import unit as begun
from reptool.rules.reading import Stated
from reptool.runtime.expect import KEPT
from reptool.safety.check import Wiring
from reptool.safety.ownership import Ownership, ownership
from reptool.surgery.fallbacks.fallbacks import Fallbacks
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.surgery.units import GivenUp, Plan, Unit
from reptool.verify.spreads import measure_spread

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
            traced = _trace(module, prefix, given, named, watched, closed, own_functions(stated.active))
        if isinstance(traced, str):
            plan.untraced[prefix] = traced
            queue += _children(prefix, module)
            continue
        recorder, trace = traced
        plan.untraced.pop(prefix, None)  # it could be followed by itself
        for path, why in trace.opaque.items():
            plan.untraced[f"{prefix}.{path}" if prefix else path] = why
        unit = _unit(
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


def _trace(
    module: nn.Module, prefix: str, args: tuple[Any, ...] | None, kwargs: dict[str, Any], watched: tuple[type, ...],
    closed: frozenset[str], own: Sequence[FunctionType],
) -> tuple[Recorder, Trace] | str:  # fmt: skip
    def new() -> Recorder:
        made = Recorder(module, prefix, watched)
        made.named, made.own_functions = closed, own
        return made

    recorder = new()

    def again(inputs: tuple[Any, Any], trace: Trace) -> Trace:
        other = new()
        other.guessed, other.unsettled = recorder.guessed, recorder.unsettled
        other.opaque = dict(trace.opaque)
        other.adopt(recorder)
        mark_state(trace, other.run(*inputs))
        return trace

    def checked(inputs: tuple[Any, Any]) -> Trace:
        before = held_by(module)
        trace = recorder.run(*inputs)
        return trace if leaves_no_state(trace, before, inputs, recorder.reads_plain) else again(inputs, trace)

    try:
        inputs = unknown_inputs(module) if args is None else (placeholders(args, "input"), placeholders(kwargs, ""))
        try:
            return recorder, checked(inputs)
        except Unanswerable:
            guess = made_up(module, inputs) if args is None else None
            if guess is None:
                raise
            recorder = new()
            recorder.guessed = True
            return recorder, checked(guess)
    except CaptureLimitError as error:
        return str(error)
    except Exception as error:  # the user's forward may raise anything
        return said(error)


def _unit(
    recorder: Recorder,
    trace: Trace,
    options: Options,
    known: tuple[bool, bool],
    owned: Ownership,
    above: dict[str, nn.Module],
    plan: Plan,
    responses: Responses,
    stated: Stated,
    given_up: GivenUp,
) -> Unit:  # long: the phases of one module, in order
    values, cast = known
    reads = resolve(trace.graph)
    trace.escaped |= handed_out(trace.top, reads)
    drop_settled(trace)
    facts = Facts(recorder, reads, {}, responses, stated)
    blocked = _blocked(recorder, trace)
    specialize = _specializer(recorder, trace, owned, options) if options.keep_fallback and trace.shown else None
    closed = [str(n.target) for n in trace.graph.nodes if n.op == "call_module" and n.meta.get("opaque") == ""]
    unread = {".".join(p for p in (trace.prefix, path) if p) for path in closed}
    spreads = Spreads(trace, measure_spread, lambda way: asked_around(way) or run_again(way, trace), values)
    affines = OwnAffines()
    while True:
        found = analyse(
            trace.graph, reads, facts, blocked, trace.escaped, values, spreads.active.copy(), affines, options.price,
            several=options.several,
        )  # fmt: skip
        if affines.go_on(found.ops, found.wanted):
            continue
        if affines.keep(found.wanted | out_of_reach(found, {}), why_left(trace, found, found.refused, {}, values)):
            continue
        surgeon = Surgeon(trace, found, owned.hooked, owned.tied, owned.held, specialize, given_up.methods)
        wiring = Wiring(surgeon, above, {*plan.untraced, *unread}, values)
        planning = Planning(surgeon, wiring, options, cast, given_up)
        planned = planning.done()
        surgery, refusals = planned or (Surgery(), planning.refusals)
        reason = why_left(trace, found, {**found.refused, **refusals}, planning.rejected, values)
        alive = surgeon.alive(surgery.sites) if planned else out_of_reach(found, planning.rejected)
        if affines.keep(alive, reason):
            continue
        if spreads.settled(_outcome(surgeon, surgery, alive, refusals)):
            break
    refusals.update(spreads.refused)
    fused = {n for s in surgery.sites for n in s.region.form.ops}
    left = {n: r for n, r in {**found.refused, **refusals}.items() if n not in fused and not _is_cut(found, n, r)}
    left.update(affines.left())
    alive = surgeon.alive(surgery.sites)
    left.update(left_over(trace, found, alive, left, planning.rejected, values))
    left = {n: r for n, r in left.items() if n not in affines.active}
    left = {n: r if n.name in r.nodes else r.at(n.name, *r.nodes) for n, r in map(_of_sum, left.items())}
    unit = Unit(trace.prefix, trace, reads, facts, found, surgery, left, alive, _questions(trace))
    gone = unit.gone()
    for path in gone & set(trace.opaque):
        plan.untraced.pop(".".join(p for p in (trace.prefix, path) if p), None)
    unit.closed = list(dict.fromkeys(p for p in closed if p not in gone))
    return unit


def _outcome(
    surgeon: Surgeon, surgery: Surgery, alive: set[fx.Node], refusals: dict[fx.Node, Refusal]
) -> Outcome:  # fmt: skip
    """What came of a plan, for the norms that are given to parts."""
    found = surgeon.found
    placed = {n for s in surgery.sites if s.carrier not in found.shares for n in s.region.form.ops}
    regions = [s.region for s in surgery.sites]

    def kept(nodes: set[fx.Node]) -> bool:
        paths = {n.meta["event"].path for n in nodes} | {str(n.target) for n in nodes if n.op == "call_module"}
        return any(not k or f"{p}.".startswith(f"{k}.") for p in paths for k in surgery.keeping)

    return Outcome(found, regions, placed - alive, refusals, kept)


def _of_sum(item: tuple[fx.Node, Refusal]) -> tuple[fx.Node, Refusal]:
    """What is said of some terms of a sum as what is said of the sum."""
    node, refusal = item
    if "parts" not in node.meta:
        return item
    whole = node.meta["share_of"]
    return whole, refusal.at(*(whole.name if n == node.name else n for n in refusal.nodes))


def _blocked(recorder: Recorder, trace: Trace) -> dict[fx.Node, Refusal]:
    """Layers that are not what they look like: watched by hooks, or set by the code that calls them."""
    blocked: dict[fx.Node, Refusal] = {}
    for node in trace.graph.nodes:
        written = recorder.unsettled.get(id(node.meta.get("module")))
        if node.meta.get("hooked"):
            blocked[node] = Refusal(Code.HOOK, f"{named(node)} has hooks that would see other values", (node.name,))
        elif written is not None:
            sentence = f"the forward itself sets {written!r} of {named(node)}, which may be another one at each call"
            blocked[node] = Refusal(Code.SPECIALIZED, sentence, (node.name,))
    return blocked


def _is_cut(found: Analysis, node: fx.Node, refusal: Refusal) -> bool:
    """Whether all that was refused is a layer for each piece of what one layer computes: no more than there was."""
    op = found.ops.get(node)
    while isinstance(op, HandedOn):
        op = found.ops.get(op.source)
    free = isinstance(op, Affine) and op.paradigm == "slice" and not op.cost
    return free and refusal.code in (Code.SHARED, Code.READ_ELSEWHERE)


def _specializer(
    recorder: Recorder, trace: Trace, owned: Ownership, options: Options
) -> Callable[[list[Site], dict[str, list[str]]], Fallbacks]:
    """What works out the fallbacks of a surgery on this trace."""
    calls = list(all_events(trace.top))
    return lambda sites, aliases: Fallbacks(recorder, calls, sites, aliases, owned.held, options.force is True)


def _questions(trace: Trace) -> list[str]:
    out: list[str] = []

    def walk(event: Event) -> None:
        out.extend(f"{event.function}: {asked(q)} = {q.answer!r}" for q in event.questions)
        for item in event.items:
            if isinstance(item, Event):
                walk(item)

    walk(trace.top)
    return out
