"""One traced module, from its graph to its surgery: lift, choose, place, check, and choose again."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from reptool.api.pipeline.planning import Planning
from reptool.capture.exposed_values import handed_out
from reptool.capture.tracer import Recorder
from reptool.ir.aliasing import resolve
from reptool.ir.ops import Affine, HandedOn
from reptool.ir.trace import Trace, all_events
from reptool.passages.own_affines import OwnAffines
from reptool.plan.candidates import Analysis, analyse, out_of_reach
from reptool.plan.inference.facts import Facts
from reptool.plan.options import Options
from reptool.plan.settled import drop_settled
from reptool.plan.spreading.code import asked_around, run_again
from reptool.plan.spreading.spreads import Outcome, Spreads
from reptool.probing.opaque import Responses
from reptool.pysource.places import asked, named
from reptool.refusal import Code, Refusal
from reptool.report.left import left_over, why_left
from reptool.rules.reading import Stated
from reptool.safety.check import Wiring
from reptool.safety.ownership import Ownership
from reptool.surgery.fallbacks.fallbacks import Fallbacks
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.surgery.units import GivenUp, Plan, Unit
from reptool.verify.spreads import measure_spread


def unit_of(
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
    """Everything that will be done to one traced module.

    Args:
        recorder: the one that traced it.
        trace: of the module.
        options: what to do.
        known: whether values may be looked at, and whether each layer's values are worked out.
        owned: who else owns or watches its tensors and modules.
        above: the modules that enclose it.
        plan: of the whole model, as far as there is one.
        responses: impulse responses of modules that are measured.
        stated: what rules of the user's say of modules and functions.
        given_up: regions that must not be formed, and why.
    """
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
            several=options.several and not isinstance(trace.root, fx.GraphModule),
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
    answers = [f"{e.function}: {asked(q)} = {q.answer!r}" for e in all_events(trace.top) for q in e.questions]
    unit = Unit(trace.prefix, trace, reads, facts, found, surgery, left, alive, answers)
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
