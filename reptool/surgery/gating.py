"""Gating: which layers and markers get a gate, and the calls in which each of them is right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from reptool.ir.ops import Affine, View
from reptool.ir.paths import is_below
from reptool.ir.trace import Event, lowest_call
from reptool.passages.norm_affine import TENSORS
from reptool.runtime.gates.called import set_called
from reptool.runtime.gates.calls import kind_of
from reptool.runtime.gates.chain import WITHIN, Chain, Gate, Link, Path
from reptool.runtime.gates.gate import geometry_of, set_gate
from reptool.runtime.gates.in_place import hooks_on, put_on
from reptool.surgery.site import Calls, Site, Surgery
from reptool.surgery.traced import Traced, holders, is_plain_identity


def calls(traced: Traced, surgery: Surgery, sites: Iterable[tuple[Site, Site]]) -> Iterator[Calls]:
    """The calls of one run in which layers that change their meaning, and absorbed modules, are right.

    Args:
        traced: what was seen of that run.
        surgery: what will be done.
        sites: the regions as they stand in that run, each with the one of the surgery that it is.
    """
    pairs = list(sites)
    run, kin = _Run(traced, surgery), kin_of([s for s, _ in pairs])
    for site, known in pairs:
        yield from _of_layer(run, site, known)
        yield from _of_others(run, site, known, lowest_of(*kin[site]))


def wide_of(traced: Traced, site: Site) -> torch.dtype | None:
    """The dtype of the tensors in a region that no conversion of the model reaches; a number of no axes yields."""
    owners = {o for n in site.region.form.ops for o in traced.found.ops[n].owners}
    held = (t for n, t in traced.trace.constants.items() if n in owners and t.is_floating_point() and t.dim())
    return functools.reduce(_wider, (t.dtype for t in held), None)


def _wider(one: torch.dtype | None, other: torch.dtype | None) -> torch.dtype | None:
    return one or other if one is None or other is None else torch.promote_types(one, other)


class _Run:
    """What was seen of one run, and what becomes of its modules.

    Args:
        traced: the run.
        surgery: what will be done.

    Attributes:
        gone: modules that go away.
        emptied: modules that lose tensors and keep their code. One that only holds others, as in a graph, has none.
    """

    def __init__(self, traced: Traced, surgery: Surgery) -> None:
        self.traced, self.surgery = traced, surgery
        self.gone, root = gone_with(surgery), traced.trace.top.module
        self.emptied = {p for p in emptied(surgery) if type(root.get_submodule(p)) is not nn.Module}


def kin_of(sites: Iterable[Site]) -> dict[Site, list[Site]]:
    """For each region those that make what it changed undone with it: they took shares of the same norms."""
    takers: dict[fx.Node, list[Site]] = {}
    found: dict[Site, list[Site]] = {site: [site] for site in sites}
    for site in found:
        for norm in shared(site):
            takers.setdefault(norm, []).append(site)
    for site, kin in found.items():
        kin += dict.fromkeys(s for norm in shared(site) for s in takers[norm] if s is not site)
    return found


def shared(site: Site) -> set[fx.Node]:
    """The norms that a region took a share of: without all others that did, what they give means nothing."""
    return {n.meta["share_of"] for n in site.region.form.ops if "share_of" in n.meta}


def _of_layer(run: _Run, site: Site, known: Site) -> Iterator[Calls]:
    """The calls in which the layer of a region is right."""
    if site.slot is not None and changes(run.traced, site):
        lowest = lowest_of(site)
        chain, watched = _around(run, site, lowest)
        around = site.carrier.meta["event"] if site.event is None else site.event.parent
        found = _chain(site.slot, around, lowest, chain)
        yield Calls(site.slot, known, lowest.path, found, (*watched, site.slot))


def _of_others(run: _Run, site: Site, known: Site, lowest: Event) -> Iterator[Calls]:
    """The calls in which what else a region changed is right: those that hold all regions that make it undone."""
    chain, watched = _around(run, site, lowest)
    for event in written(site, lowest, run.surgery):
        around = event.parent if event.method == "forward" else event
        found = _chain(event.path, around, lowest, chain)
        yield Calls(event.path, known, lowest.path, found, (), event.method)
    for path, caller in {**_absorbed(site, run.traced, run.surgery), **_bare(site, run.traced)}.items():
        if not is_below(path, run.gone):
            yield Calls(path, known, lowest.path, _chain(path, caller, lowest, chain), watched)


def _around(run: _Run, site: Site, lowest: Event) -> tuple[Chain, tuple[str, ...]]:
    """What a call has to find in place to run a region as it was, and the modules that nobody may watch there."""
    traced, surgery, gone = run.traced, run.surgery, run.gone
    lost = run.emptied & {p for n in site.region.form.ops for p in holders(traced.found.ops[n])}
    absorbed = [p for p in _absorbed(site, traced, surgery) if not is_below(p, gone)]
    inside = {e.path for n in site.region.form.ops for e in n.meta["event"].ancestors() if lowest in e.ancestors()}
    handing = _handing_on(site, traced) | {e.path for e in handing_calls(site, lowest) if e.method == "forward"}
    passed = inside | _between(site, traced, lowest) | handing | _bare(site, traced).keys()
    absorbed += sorted(p for p in handing & surgery.identities.keys() - set(absorbed) if not is_below(p, gone))
    watched = tuple(sorted(p for p in passed - {lowest.path} if p not in gone and not is_below(p, gone)))
    gated = [site.slot] if site.slot is not None and changes(traced, site) else []
    changed = (inside & surgery.methods.keys()) - {lowest.path}
    return Chain(
        (),
        None,
        _places(absorbed, lowest),
        series=_in_series(traced, site, lowest),
        slots=_places(gated, lowest),
        written=_places(sorted(changed | lost), lowest),
    ), watched


def _bare(site: Site, traced: Traced) -> dict[str, Event]:
    """Norms that lost scale and shift to a region, and the call that runs each."""
    own = (traced.found.own[n] for n in _ops(site) if n in traced.found.own)
    return {str(b.norm.target): b.norm.meta["event"] for b in own if b.bare.module}


def _between(site: Site, traced: Traced, lowest: Event) -> set[str]:
    """Modules that rearrange values of a region and stay: what goes in or comes out is another value now."""
    nodes = traced.between(site)
    leaves = {str(n.target) for n in nodes if n.op == "call_module"}
    return leaves | {e.path for n in nodes for e in n.meta["event"].ancestors() if lowest in e.ancestors()}


def _handing_on(site: Site, traced: Traced) -> set[str]:
    """Modules that hand a value inside of a region on as it is; behind the last layer they give the region's value."""
    ops, last = site.region.form.ops, site.region.value
    found = {n for n in ops if n.op == "call_module" and is_plain_identity(traced.found.ops[n], n)}
    while last in found:
        found.remove(last)
        last = traced.found.ops[last].sources[0]
    return {str(n.target) for n in found}


def set_gates(root: nn.Module, traced: Traced, surgery: Surgery) -> None:
    """Put the gates of a surgery into a model that it was carried out on."""
    found: dict[str, list[Calls]] = {}
    parts: dict[tuple[str, str], list[Calls]] = {}
    for one in (*calls(traced, surgery, [(s, s) for s in surgery.sites]), *surgery.other_calls):
        if one.method == "forward":
            found.setdefault(one.path, []).append(one)
        else:
            parts.setdefault((one.path, one.method), []).append(one)
    modules = dict(root.named_modules(remove_duplicate=False))
    for (path, method), held in parts.items():
        set_called(modules[path], method, tuple(dict.fromkeys(c.chain for c in held)))
    for path in surgery.identities:
        found.setdefault(path, [Calls(path, None, c.path, c.chain, ()) for c in _callers(traced, path)])
    gone = gone_with(surgery)
    gated = {p: held for p, held in found.items() if p in modules and not is_below(p, gone)}
    for path in gated:  # first the hooks, which the gates count
        set_gate(modules[path], Gate(path, (), ()))
    for path, made in gated.items():
        sites = dict.fromkeys(c.site for c in made if c.site is not None)
        ops = [(n, traced.found.ops[n]) for s in sites for n in _ops(s)]
        own = traced.trace.place(path)
        region = dict.fromkeys(traced.trace.place(o) for _, op in ops for o in op.owners)
        norms = len({o for _, op in ops if op.paradigm == "bn" for o in op.owners[:1]})
        chains = tuple(dict.fromkeys(_together([_counted(c, modules, surgery.bare) for c in made])))
        ranks = _own_ranks(traced, path) if path in surgery.identities else _ranks(traced, sites)
        lost = tuple(n for n in TENSORS if n in modules[path]._parameters) if path in surgery.bare else ()
        wide = functools.reduce(_wider, (wide_of(traced, s) for s in sites if s.slot == path), None)
        scaled = any(_is_scaled(traced, s) for s in sites if s.slot == path)
        others = tuple(r for r in region if r != own)
        set_gate(modules[path], Gate(own, others, chains, norms, ranks=ranks, bare=lost, wide=wide, scaled=scaled))


def _is_scaled(traced: Traced, site: Site) -> bool:
    """Whether a region begins with something else than a layer, which may make another dtype of what it is given."""
    ops = (traced.found.ops[n] for n in site.region.form.ops)
    return any(site.region.root in op.sources and not (isinstance(op, Affine) and op.layer) for op in ops)


def _ranks(traced: Traced, sites: Iterable[Site]) -> frozenset[int]:
    """The numbers of axes that the norms of some regions take, as they say themselves; none where they take any.

    Behind a view, or where a part of a norm came from elsewhere, they say nothing of what the layer itself is given.
    """
    found = frozenset(RANKS)
    for op, node in ((traced.found.ops[n], n) for s in sites for n in s.region.form.ops):
        if isinstance(op, View) or node.meta.get("share"):
            return frozenset()
        found &= ranks_taken(node)
    return found if found < frozenset(RANKS) else frozenset()


def _own_ranks(traced: Traced, path: str) -> frozenset[int]:
    """The numbers of axes that an absorbed norm takes, where code still hands it a value."""
    nodes = [c for c in traced.calls.get(path, ()) if isinstance(c, fx.Node)]
    found = frozenset(RANKS).intersection(*map(ranks_taken, nodes))
    return found if found < frozenset(RANKS) else frozenset()


def ranks_taken(node: fx.Node) -> frozenset[int]:
    """The numbers of axes of its input that the module around an operation takes."""
    module = node.meta.get("module") if node.op == "call_module" else node.meta["event"].module
    asks = getattr(module, "_check_input_dim", None)
    if not isinstance(module, nn.modules.batchnorm._NormBase) or asks is None:
        return frozenset(RANKS)
    return frozenset(r for r in RANKS if _takes(asks, r))


def _takes(asks: Callable[[Tensor], object], rank: int) -> bool:
    try:
        asks(torch.empty((1,) * rank, device="meta"))
    except ValueError:
        return False
    return True


RANKS = range(1, 7)


def _together(chains: list[Chain]) -> list[Chain]:
    """Chains of one layer, each with the fused layers of all that are the same calls."""
    return [
        replace(c, slots=tuple(dict.fromkeys(s for o in chains if _are_same(o, c) for s in o.slots))) for c in chains
    ]


def _are_same(one: Chain, other: Chain) -> bool:
    return (one.links, one.place) == (other.links, other.place)


def changes(traced: Traced, site: Site) -> bool:
    """Whether the layer of a region gives another value than the module that was in its place."""
    for node in site.region.form.ops:
        if node is site.carrier or is_plain_identity(traced.found.ops[node], node):
            continue
        if site.event is None or site.event not in node.meta["event"].ancestors():
            return True
    return False


def _counted(one: Calls, modules: dict[str, nn.Module], bare: set[str]) -> Chain:
    """A chain with the hooks that there are now."""
    places = {p: _below(p, one.lowest) for p in one.watched}
    counts = tuple((place, hooks_on(modules[p])) for p, place in places.items() if place is not None and p in modules)
    for path in places:
        if path in modules:
            vars(modules[path])[WITHIN] = True if path in {one.path, *bare} else geometry_of(modules[path])
    return replace(one.chain, hooks=counts, marked=True)


def lowest_of(*sites: Site) -> Event:
    """The lowest call that holds some regions whole."""
    lowest, _ = lowest_call(n for s in sites for n in s.region.form.ops)
    for event in (s.event for s in sites):
        if event is not None and event in lowest.ancestors() and event.parent is not None:
            lowest = event.parent
    return lowest


def _ops(site: Site) -> list[fx.Node]:
    """The operations of a region, in an order that is the same in every process."""
    return sorted(site.region.form.ops, key=lambda node: node.name)


def written(site: Site, lowest: Event, surgery: Surgery) -> list[Event]:
    """Calls inside of a region whose method was written anew: it does only a part of what it did."""
    found: dict[tuple[str, str], Event] = {}
    for node in _ops(site):
        for event in node.meta["event"].ancestors():
            if event is lowest or event.path == site.slot:  # the layer itself is looked after by its own gate
                break
            if event.method in surgery.methods.get(event.path, {}):
                found.setdefault((event.path, event.method), event)
    return list(found.values())


def _absorbed(site: Site, traced: Traced, surgery: Surgery) -> dict[str, Event]:
    """Absorbed modules of a region, and the call that runs each or reads its tensors."""
    found: dict[str, Event] = {}
    for node in _ops(site):
        event: Event = node.meta["event"]
        held = [str(node.target)] if node.op == "call_module" else holders(traced.found.ops[node])
        found |= {path: event for path in held if path in surgery.identities}
        for around in event.ancestors():
            if around.parent is not None and around.method == "forward" and around.path in surgery.identities:
                found[around.path] = around.parent
    return found


def emptied(surgery: Surgery) -> set[str]:
    """Paths of modules that lose tensors and keep their code."""
    gone = gone_with(surgery) | surgery.bare
    losing = {tensor.rpartition(".")[0] for tensor in surgery.dropped} - surgery.methods.keys() - gone
    return {path for path in losing if not is_below(path, gone)}


def gone_with(surgery: Surgery) -> set[str]:
    """Modules that go away."""
    return {*surgery.identities, *(s.slot for s in surgery.sites if s.slot is not None and not s.reuse)}


def _chain(path: str, around: Event | None, lowest: Event, like: Chain) -> Chain:
    """The calls from the one that runs a layer up to the lowest one that holds the region."""
    events: list[Event] = []
    for event in () if around is None else around.ancestors():
        events.append(event)
        if event is lowest:
            break
    else:
        events = [lowest]
    links = tuple(_link(event, lowest) for event in events)
    between = frozenset(Link(None, kind, method) for event in events for kind, method in event.between)
    return replace(like, links=links, place=_below(path, lowest.path), between=between)


def _link(event: Event, lowest: Event) -> Link:
    own = event.method in event.module.__dict__
    kind, put = kind_of(type(event.module)), put_on(event.module)
    return Link(_below(event.path, lowest.path), kind, event.method, own, put)


def _callers(traced: Traced, path: str) -> Iterator[Calls]:
    """The calls of a module that no region names."""
    for call in traced.calls.get(path, ()):
        around: Event | None = call.meta["event"] if isinstance(call, fx.Node) else call.parent
        if around is not None:
            yield Calls(path, None, around.path, _chain(path, around, around, Chain((), None)), ())


def handing_calls(site: Site, lowest: Event) -> list[Event]:
    """The calls inside of the lowest one that holds a region which hand a value inside of it on."""
    inner = sorted(site.region.form.ops - {site.region.value}, key=lambda node: node.name)
    calls = dict.fromkeys(e for node in inner for e in node.meta.get("through", ()))
    return [e for e in calls if e is not lowest and lowest in e.ancestors()]


def _places(paths: Iterable[str], lowest: Event) -> tuple[Path, ...]:
    return tuple(p for p in (_below(path, lowest.path) for path in paths) if p is not None)


def _below(path: str, lead: str) -> Path | None:
    """A path as names below the module at another, None where it is elsewhere."""
    if not path or path == lead:
        return () if path == lead else None
    if lead and not path.startswith(f"{lead}."):
        return None
    return tuple(path[len(lead) :].lstrip(".").split("."))


def _in_series(traced: Traced, site: Site, lowest: Event) -> tuple[str, ...]:
    """The modules that a region is, in order, where its lowest call runs them one behind the other, whoever does so."""
    before: fx.Node | None = None
    found: dict[str, None] = {}
    if shared(site):
        return ()
    for node in traced.ordered(site.region.form):
        op = traced.found.ops[node]
        if not isinstance(op, Affine) or (before is not None and op.sources != [before]):
            return ()
        if node.meta["event"] is lowest and node.op != "call_module":
            return ()
        place = _below(str(node.target) if node.op == "call_module" else node.meta["event"].path, lowest.path)
        if place is None:
            return ()
        found |= dict.fromkeys(place[:1])
        before = node
    return tuple(found)
