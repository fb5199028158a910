"""Which modules are absorbed as a whole, and which methods are written anew."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import fx, nn

from reptool.ir.nodes import is_inert
from reptool.ir.paths import lies_in
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in
from reptool.refusal import Code, Refusal
from reptool.rewrite.codegen.cutter import Cutter
from reptool.rewrite.codegen.edits import gives_back, is_dead, is_folded
from reptool.runtime.method import Method
from reptool.surgery.editing.draft import Draft
from reptool.surgery.editing.idle import absorbed_in
from reptool.surgery.gating import lowest_of, wide_of
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced, is_plain_identity


def rewrite(draft: Draft, event: Event) -> None:
    """Work out what becomes of a call, and of all that it makes."""
    if event in draft.whole or _is_left_out(draft, event):
        return
    touched: list[fx.Node] = []
    for item in event.items:
        if isinstance(item, Event):
            if is_dead(item, draft.edits):
                touched += [n for n in item.nodes() if n in draft.edits.dead][:1]
            rewrite(draft, item)
            if item in draft.edits.omitted or item in draft.edits.folded:
                touched += item.nodes()
        elif _is_touched(draft, item):
            touched.append(item)
    if touched:
        _regenerate(draft, event, touched)
    else:
        draft.plain.add(event)


def _is_left_out(draft: Draft, event: Event) -> bool:
    """Whether a call is made no more, or gives back what it is given; its module is absorbed where nobody needs it."""
    if event.parent is not None and is_dead(event, draft.edits) and not _all_const(event):
        named = any(n in draft.blame for n in event.nodes())  # what holds no part of a region stays for other code
        if event.method == "forward" and named:
            draft.surgery.identities.setdefault(event.path, "no longer needed")
        return True
    if _is_bypass(draft, event):
        draft.surgery.identities.setdefault(event.path, "absorbed")
        return True
    if gives_back(event, draft.edits) and _is_omitted(draft, event):
        draft.edits.omitted.add(event)
        return True
    if _is_folded(draft, event):
        draft.edits.folded.add(event)
        if event.method == "forward":
            draft.surgery.identities.setdefault(event.path, "absorbed")
        return True
    return False


def _is_touched(draft: Draft, node: fx.Node) -> bool:
    """Whether an operation is written down no more as it was."""
    edits = draft.edits
    if node in edits.dead or node in edits.layers or node in edits.bare:
        return True
    return node in edits.bypass and node.op != "call_module" and not is_plain_identity(draft.found.ops.get(node), node)


def _is_omitted(draft: Draft, event: Event) -> bool:
    """Whether a call that gives back an argument is not made any more, rather than its method written anew.

    Another argument is computed no more, or its module is called elsewhere, where it does what it did.
    """
    again = sum(isinstance(c, Event) and c.method == event.method for c in draft.traced.calls[event.path]) > 1
    return again or not draft.edits.dead.isdisjoint(nodes_in((event.args, event.kwargs)))


def _is_folded(draft: Draft, event: Event) -> bool:
    """Whether a layer does all that a call did, and all that other calls of its module did."""
    if draft.surgery.fallbacks is not None or not draft.trace.shown or lies_in(event.path, draft.slots):
        return False
    if event.method != "forward":
        return is_folded(event, draft.edits)
    inside = set(all_events(event))
    calls = draft.traced.calls[event.path]
    return all(isinstance(c, Event) and (is_folded(c, draft.edits) or c in inside - {event}) for c in calls)


def mixed(draft: Draft) -> dict[fx.Node, Refusal]:
    """Values of regions in methods that are written anew for one call and stay as they are for another."""
    found: dict[fx.Node, Refusal] = {}
    for event in draft.plain:
        if event.method in draft.surgery.methods.get(event.path, ()):
            why = Refusal(Code.SHARED, f"{event.function} runs differently in different places", (event.place,))
            calls = [e for e in draft.traced.calls[event.path] if isinstance(e, Event) and e.method == event.method]
            nodes = {n for e in calls for n in e.nodes()}
            found |= {s.region.value: why for n, s in draft.blame.items() if n in nodes}
    return found


def _is_bypass(draft: Draft, event: Event) -> bool:
    """Whether a module call does nothing any more but hand its input on."""
    if event.parent is None or event.method != "forward" or event.hooked or event.questions or event.effects:
        return False
    if not isinstance(event.output, fx.Node) or len(event.args) != 1 or event.kwargs or event.args[0] is None:
        return False
    nodes = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
    if not nodes or not all(n in draft.edits.bypass and n not in draft.edits.layers for n in nodes):
        return False
    if not draft.edits.promoted.isdisjoint(nodes) or not draft.edits.joined.keys().isdisjoint(nodes):
        return False
    return any(_owners(draft.traced, n) for n in nodes) and any(n.op != "call_module" for n in nodes)


def _owners(traced: Traced, node: fx.Node) -> tuple[str, ...]:
    op = traced.found.ops.get(node)
    spread = next((s for s in traced.found.spreads if s.norm is node), None)
    return spread.op.owners if spread is not None else () if op is None else op.owners


def _regenerate(draft: Draft, event: Event, touched: list[fx.Node]) -> None:
    refusal = _method_refused(draft.traced, event)
    specializes = draft.surgery.fallbacks is not None
    cutter = Cutter(
        event,
        draft.edits,
        draft.traced.reads,
        draft.found.facts.recorder,
        _assumed(draft.traced, event),
        specializes,
        draft.trace.prefix,
    )
    mine = dict.fromkeys([*(draft.blame[n] for n in touched if n in draft.blame), *_held_by(draft, event)])
    _look_after(draft, event, cutter, mine)
    made = refusal or cutter.method()
    known = draft.surgery.methods.get(event.path, {}).get(event.method)
    if isinstance(made, Method) and known is not None and known.source != made.source:
        made = Refusal(Code.SHARED, f"{event.function} runs differently in different places", (event.place,))
    if isinstance(made, Refusal):
        for node in touched:
            site = draft.blame.get(node) or next(
                (draft.blame[n] for n in _cause(draft.traced, node) if n in draft.blame), None
            )
            if site is not None:
                draft.problems[site.region.value] = made
        if not draft.problems:
            raise AssertionError(f"nobody to draft.blame for {made}")
        return
    if draft.surgery.fallbacks is not None:
        draft.surgery.fallbacks.rewritten.add(event)
        if cutter.specialized:
            sites = dict.fromkeys(draft.blame[n] for n in touched if n in draft.blame)
            draft.surgery.fallbacks.need(event, (), sites, cutter.settings)
    draft.surgery.methods.setdefault(event.path, {})[event.method] = made
    draft.surgery.left_out |= {event, *cutter.body.left_out}
    draft.surgery.fixed |= cutter.fixed
    draft.surgery.events.setdefault(event.path, event)


def _look_after(draft: Draft, event: Event, cutter: Cutter, mine: Collection[Site]) -> None:
    """Let a method check what the regions in it rely on."""
    cutter.fused = tuple(s.slot for s in mine if s.slot is not None)
    if any(s.slot is None for s in mine):  # no layer has a gate that looks after what was absorbed
        cutter.absorbed = absorbed_in(draft, event)
    cutter.is_part = event.method != "forward" and any(_is_inside(draft, s, event) for s in mine)
    cutter.wide, cutter.gone = _wide(draft, mine), frozenset(draft.surgery.identities)
    cutter.asked = [q for s in mine for q in s.dtypes.get(event, ())]


def _wide(draft: Draft, sites: Iterable[Site]) -> dict[str, torch.dtype]:
    """The weights of layers in a method that took up tensors which no conversion reaches, with the dtype of these."""
    wide = {s: wide_of(draft.traced, s) for s in sites if s.slot is None}
    return {f"{s.owner}.{s.names[0]}".lstrip("."): dtype for s, dtype in wide.items() if dtype is not None}


def _is_inside(draft: Draft, site: Site, event: Event) -> bool:
    """Whether a call runs a part of what makes a change undone, and a call around it the rest."""
    lowest = lowest_of(*draft.kin[site])
    return event is not lowest and lowest in event.ancestors()


def _held_by(draft: Draft, event: Event) -> Iterable[Site]:
    """The regions that lie in one call, and in no call inside of it."""
    own = {i for i in event.items if not isinstance(i, Event)}
    return (s for s in draft.surgery.sites if s.carrier in own or s.region.form.ops & own)


def _assumed(traced: Traced, event: Event) -> bool:
    """Whether nobody showed with which optional arguments this call is made."""
    return not traced.trace.shown and (event.parent is None or bool(traced.trace.prefix))


def _cause(traced: Traced, node: fx.Node) -> Iterable[fx.Node]:
    stack, seen = [node], {node}
    while stack:
        n = stack.pop()
        yield n
        for i in n.all_input_nodes:
            if i not in seen:
                seen.add(i)
                stack.append(i)


def _method_refused(traced: Traced, event: Event) -> Refusal | None:
    full = ".".join(p for p in (traced.trace.prefix, event.path) if p)
    if (full, event.method) in traced.fixed:
        return traced.fixed[full, event.method]
    if isinstance(event.module, (nn.Sequential, nn.ModuleList)) and event.path:
        function = type(event.module).forward
        if function is nn.Sequential.forward:
            return None
    bound = event.module.__dict__.get(event.method)
    if bound is not None and not hasattr(bound, "recorder"):
        return Refusal(Code.METHOD, f"{event.function} was put on the instance", (event.place,))
    return None


def _all_const(event: Event) -> bool:
    return all(n.meta["const"] for n in event.nodes())
