"""Use check: whether modules, tensors and inner shapes of a region are used anywhere else."""

from __future__ import annotations

from torch import fx

from reptool.ir.nodes import is_asked, metadata_read
from reptool.ir.ops import Affine, Concat, Pieces
from reptool.plan.select import Region
from reptool.pysource.places import listed, named, seen_in
from reptool.refusal import Code, Refusal
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced, is_plain_identity


def uses_refused(traced: Traced, sites: list[Site]) -> dict[Region, Refusal]:
    """Regions whose modules are used in a way the surgery would change."""
    bad: dict[Region, Refusal] = {}
    absorbed: dict[fx.Node, list[Site]] = {}
    for site in sites:
        for node in (*site.onpath, *site.dead, site.carrier):
            absorbed.setdefault(node, []).append(site)
    live = traced.alive(sites)
    names: dict[tuple[str, str | None], Site] = {}
    for site in sites:
        first = names.setdefault((site.owner, site.names[0]), site) if site.slot is None else site
        if first is not site and traced.signature(first) != traced.signature(site):
            bad[site.region] = Refusal(
                Code.METHOD,
                f"two layers of one method would keep their weights as {site.names[0]!r}",
                (first.carrier.name, site.carrier.name),
            )
            continue
        refusal = _check_site(traced, site, absorbed, live)
        if refusal is not None:
            bad[site.region] = refusal
    return bad


def _check_site(traced: Traced, site: Site, absorbed: dict[fx.Node, list[Site]], live: set[fx.Node]) -> Refusal | None:
    signature = traced.signature(site)
    for node in (*site.onpath, *site.dead, site.carrier):
        op = traced.found.ops[node]
        joined = site.region.form.joined
        changes = bool(op.owners) or node is site.carrier or (joined is not None and node in joined.ops)
        if changes and node in live:
            return _read_elsewhere(traced, "the output of a layer that would go away", node, absorbed)
        if not op.owners and node in live and node not in site.onpath:
            continue
        if isinstance(op, Pieces) and node in live:
            continue
        if node in live and node in site.onpath and not is_plain_identity(op, node):
            return _read_elsewhere(traced, "a value that would go away", node, absorbed)
        last = max(absorbed[node], key=lambda s: traced.reads.position[s.region.value])
        if len(absorbed[node]) > 1 and last is site and any(other.carrier is node for other in absorbed[node]):
            return Refusal(Code.READ_ELSEWHERE, "one layer would have to serve two regions", (node.name,))
        soft = _soft_refused(traced, node, site, absorbed)
        if soft is not None:
            return soft
        for owner in op.owners:
            own = node in traced.found.own
            if node.op != "call_module" and node is not site.carrier and site.event is None and not own:
                continue  # a constant that is read here and elsewhere simply stays
            refusal = _owner_refused(traced, owner, node, site, signature, absorbed)
            if refusal is not None:
                return refusal
    return None


def _soft_refused(traced: Traced, node: fx.Node, site: Site, absorbed: dict[fx.Node, list[Site]]) -> Refusal | None:
    for reader in traced.found.soft.get(node, ()):
        same = metadata_read(reader) == "rank"
        if (same and node not in site.dead) or _only_for(traced, reader, absorbed, asked=same):
            continue
        if node in site.dead or not _same_size(traced, node, site):
            sentence = f"{seen_in(reader)} reads the shape of {named(node)}, which would go away"
            return Refusal(Code.READ_ELSEWHERE, sentence, (node.name, reader.name))
    return None


def _only_for(traced: Traced, number: fx.Node, absorbed: dict[fx.Node, list[Site]], asked: bool) -> bool:
    """Whether a number or dtype is worked out for nothing but absorbed operations and their constants.

    Args:
        traced: the trace.
        number: what is worked out.
        absorbed: the operations.
        asked: whether Python may ask for it, since a guard sees to that.
    """
    for user in number.users:
        if user in absorbed or (user.meta["const"] and all(n in absorbed for n in traced.const_users(user))):
            continue
        computes = user.meta.get("kind") in ("tensor", "sequence") and user.all_input_nodes != [number]
        ends = computes or user.op == "output" or (is_asked(user) and not asked)
        if ends or not _only_for(traced, user, absorbed, asked):
            return False
    return True


def _read_by(traced: Traced, user: fx.Node) -> list[fx.Node]:
    """What computes with a constant: the scales and shifts of a norm rather than the norm."""
    behind = traced.found.bare.get(user)
    return [user] if behind is None else list(behind.ops)


def _read_elsewhere(traced: Traced, what: str, node: fx.Node, absorbed: dict[fx.Node, list[Site]]) -> Refusal:
    others = [r for r in traced.reads.readers.get(node, ()) if r not in absorbed and not metadata_read(r)]
    return Refusal(Code.READ_ELSEWHERE, f"{what} is also read by {listed(others)}", (node.name,))


def _same_size(traced: Traced, node: fx.Node, site: Site) -> bool:
    """Whether an absorbed value on the way has the size of what stands in for it."""
    position = traced.reads.position
    if node is site.carrier or position[node] > position[site.carrier]:
        between = [n for n in site.onpath if position[n] > position[node]]
    else:
        between = [n for n in site.onpath if position[n] <= position[node]]
    for n in between:
        op = traced.found.ops[n]
        if isinstance(op, Concat):
            return False
        if isinstance(op, Affine):
            keeps = all(a.stride == 1 and a.extent == 0 for a in op.shape.axes or ()) and op.shape.transposed is None
            keeps = keeps and op.resampling is None
            if not keeps or op.shape.in_channels != op.shape.out_channels:
                return False
    return True


def _owner_refused(
    traced: Traced, owner: str, node: fx.Node, site: Site, signature: object, absorbed: dict[fx.Node, list[Site]]
) -> Refusal | None:
    """Whether a module or tensor is used anywhere but in absorbed operations of the same meaning."""
    slotted = owner == site.slot or (site.event is not None and owner.startswith(f"{site.slot}."))
    if owner in traced.hooked:
        return Refusal(Code.HOOK, f"{traced.trace.place(owner)!r} has hooks that would see other values", (node.name,))
    behind = traced.found.own.get(node)
    called = node.op == "call_module" or (behind is not None and behind.bare.module)
    if owner in traced.held and called and not (slotted and site.reuse):
        sentence = f"{traced.trace.place(owner)!r} is also kept in a plain attribute, which would keep the old one"
        return Refusal(Code.SHARED, sentence, (node.name,))
    given = [e for a in traced.attributes_of(owner) for e in traced.givers.get(a, ())]
    for event in given:
        if event in node.meta["event"].ancestors():
            sentence = f"{traced.trace.place(owner)!r} is also given out by {event.function}"
            return Refusal(Code.SHARED, sentence, (node.name,))
    spread = traced.found.shares.get(node)
    for user in (n for u in _users(traced, owner) for n in _read_by(traced, u)):
        if spread is not None and user is spread.norm:
            continue
        if user in absorbed:
            kept = slotted or node is site.carrier
            why = _absorbed_otherwise(traced, node, site, user, absorbed[user], signature if kept else None)
        elif user is node:
            continue
        elif user.op == "call_module":
            why = "is called more than once"
        else:
            why = f"is also read by {named(user)}"
        if why is not None:
            return Refusal(Code.SHARED, f"{traced.trace.place(owner)!r} {why}", (node.name, user.name))
    return None


def _users(traced: Traced, owner: str) -> list[fx.Node]:
    """The operations that use a module or tensor."""
    users: list[fx.Node] = []
    for call in traced.calls.get(owner, ()):
        if isinstance(call, fx.Node):
            users += traced.const_users(call) if call.meta["const"] else [call]
    for attribute in traced.attributes_of(owner):
        users += traced.const_users(attribute)
    return users


def _absorbed_otherwise(
    traced: Traced, node: fx.Node, site: Site, user: fx.Node, others: list[Site], signature: object | None
) -> str | None:
    """Why another absorbed operation needs something else of a module than this one."""
    if user.op == "call_module" and any((user is s.carrier) != (node is site.carrier) for s in others):
        return "would be a layer in one place and absorbed in another"
    if signature is not None and any(traced.signature(s) != signature for s in others if s is not site):
        return "is called in places that would need different weights"
    return None
