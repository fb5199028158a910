"""What is left out of the code: operations on the way of a region, those off it, and what depends on these alone."""

from __future__ import annotations

from torch import Tensor, fx

from reptool.ir.nodes import DIVISIONS, is_inert, is_size_like, name_of
from reptool.ir.ops import Affine, Concat, Op, Pieces, Stack, Sum, View
from reptool.passages.own_affines import Behind
from reptool.passages.spread import origin
from reptool.plan.resolutions.joined import Joined
from reptool.surgery.editing.draft import Draft
from reptool.surgery.editing.layer_call import call_of, rank_held, takes
from reptool.surgery.placing.term import kept_whole, term_of
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def leave_out(draft: Draft, site: Site) -> None:
    """Leave out the operations of a region, and note what becomes of their modules."""
    for node in (*site.onpath, *site.dead, site.carrier):
        draft.blame.setdefault(node, site)
    if site.slot is not None:
        draft.slots.add(site.slot)
    if site.event is not None:
        draft.whole.add(site.event)
    for node in site.region.form.ops:
        behind = draft.found.own.get(node)
        if behind is not None:
            _leave_bare(draft, behind)
            draft.blame.setdefault(behind.norm, site)
    for node in site.onpath:
        _bypass(draft, site, node)
    for node in site.dead:
        if node not in draft.alive:
            draft.edits.dead.add(node)
            if node.op == "call_module" and draft.found.ops[node].owners:
                draft.surgery.identities[str(node.target)] = "absorbed"
    if site.region.form.joined is not None:
        _hand_on(draft, site.region.form.joined)
    op = draft.found.ops[site.carrier]
    rank = rank_held(draft.traced, site)
    if rank is not None and (path := site.slot if site.slot is not None else takes(site)) is not None:
        draft.surgery.guards[path] = rank
    if site.slot is None and not site.in_place:
        draft.edits.bypass[site.carrier] = op.sources[0]
        draft.edits.layers[site.carrier] = call_of(draft.traced, site)


def _hand_on(draft: Draft, joined: Joined) -> None:
    """Values side by side are handed on as they are, by what brought them to one resolution."""
    draft.edits.joined[joined.node] = joined
    for value, up in zip(joined.values, joined.ups, strict=True):
        if up is not None and up is not joined.node:
            draft.edits.dead.discard(up)
            draft.edits.bypass[up] = value


def _bypass(draft: Draft, site: Site, node: fx.Node) -> None:
    """Let the value that an operation on the way reads take its place."""
    op = draft.found.ops[node]
    if isinstance(op, View) or (isinstance(op, Pieces) and node in draft.alive):
        return
    read = [op.source, *op.sources] if isinstance(op, Affine) else op.sources
    source = next(s for s in read if s in site.onpath or s is site.carrier or s is site.region.root)
    if isinstance(op, (Sum, Concat, Stack)):
        source = _operand(draft.traced, node, op, site, set(site.onpath))
    draft.edits.bypass[node] = source
    if source.op == "placeholder" and _makes_floats(node):
        draft.edits.promoted.add(node)
    if node.op == "call_module" and op.owners:
        draft.surgery.identities[str(node.target)] = "absorbed"


def _leave_bare(draft: Draft, behind: Behind) -> None:
    """A norm whose scale and shift went into all that reads it."""
    draft.edits.bypass |= {node: at for at, node in behind.nodes.items()}
    if not behind.bare.module:
        draft.edits.bare[behind.norm] = behind.bare
        return
    path = str(behind.norm.target)
    draft.surgery.bare.add(path)
    draft.surgery.dropped |= {f"{path}.{n}" for n, _ in draft.traced.modules[path].named_parameters()}


def leave_out_spread(draft: Draft) -> None:
    """Norms that are no modules and were given to the parts in front of them are left out of the code."""
    for spread in draft.found.spreads:
        site = next((draft.blame[n] for n in spread.shares if n in draft.blame), None)
        if site is not None and spread.norm.op != "call_module":
            draft.edits.bypass[spread.norm] = spread.source
            draft.blame.setdefault(spread.norm, site)


def leave_out_terms(draft: Draft) -> None:
    """Terms whose layer stands in the place of another term are left out of the additions."""
    groups = {
        s: draft.found.groups[s.region.value] for s in draft.surgery.sites if s.region.value in draft.found.groups
    }
    for tree in dict.fromkeys(g.tree for g in groups.values()):
        mine = {s: g.terms for s, g in groups.items() if g.tree is tree}
        gone = {t for s, terms in mine.items() for t in terms - {term_of(draft.traced, s)}}
        refusal = kept_whole(draft.traced, tree, gone)
        if refusal is not None:
            draft.problems |= {s.region.value: refusal for s in mine}
        for node, left in tree.without(gone).items():
            draft.blame.setdefault(node, next(s for s, terms in mine.items() if tree.below[node] & terms))
            if left:
                draft.edits.bypass[node] = origin(left[0])
            else:
                draft.edits.dead.add(node)


def _operand(traced: Traced, node: fx.Node, op: Op, site: Site, way: set[fx.Node]) -> fx.Node:
    position = traced.reads.position
    on = [s for s in op.sources if s in way or s is site.carrier]
    if position[node] > position[site.carrier] or node is site.region.value:
        behind = [s for s in on if s is site.carrier or _leads(traced, s, site.carrier)]
        return behind[0] if behind else on[0]
    return on[0] if on else site.region.root


def _leads(traced: Traced, node: fx.Node, target: fx.Node) -> bool:
    form = next(iter(traced.found.forms.get(node, {}).values()), None)
    return any(target in f.ops for f in traced.found.forms.get(node, {}).values()) if form else False


def kill_inert(draft: Draft) -> None:
    """Assertions and shape arithmetic that depend on dead values are dead too."""
    for node in draft.trace.graph.nodes:
        if node.meta["const"] or node in draft.edits.dead:
            continue
        if any(n in draft.edits.dead for n in node.all_input_nodes) and (is_inert(node) or _is_idle(draft, node)):
            draft.edits.dead.add(node)


def _is_idle(draft: Draft, node: fx.Node) -> bool:
    """Whether a number is worked out for nothing that is still computed."""
    gone = draft.edits.dead | draft.edits.bypass.keys()
    return is_size_like(node) and all(u in gone or _is_idle(draft, u) for u in node.users)


def _makes_floats(node: fx.Node) -> bool:
    """Whether arithmetic gives floating-point numbers for integers too: a division, or a constant that is a float."""
    if node.op == "call_module":
        return False
    if name_of(node) in DIVISIONS:
        return True
    constants = [n.meta.get("tensor") for n in node.all_input_nodes if n.meta["const"]]
    floats = any(isinstance(t, Tensor) and t.is_floating_point() for t in constants)
    return floats or any(isinstance(a, float) for a in (*node.args, *node.kwargs.values()))
