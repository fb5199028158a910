"""Distributing: which norms are given to the parts of what they read, or to the layers behind them, all or none.

For each norm or scale that no region has taken, follow the graph back through sums, concatenations, slices and passages
to the parts, then on through passages to the layers behind it (`ways`). Where each part ends in a layer and is read
nowhere else, a `Spread` is made and everything is planned again; where a share then finds no layer, the spread is
given up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from reptool.api.ways import Ahead, Back, Way, layered
from reptool.capture.exposed_values import given_by_methods
from reptool.ir.decisions import decided
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Affine
from reptool.ir.trace import Event, Trace, all_events
from reptool.passages.spread import Spread
from reptool.plan.candidates import Analysis
from reptool.pysource.places import asked, named
from reptool.refusal import Code, Refusal
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.verify.spreads import measure_spread

PARADIGMS = ("bn", "scale")


@dataclass
class Spreads:
    """The norms of one trace that are given to parts.

    Args:
        trace: what was seen.
        active: those that are tried now, each behind those it builds on.
        refused: norms that stay, and why.
        values: whether values may be looked at.
    """

    trace: Trace
    values: bool = True
    active: list[Spread] = field(default_factory=list)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)
    _tried: set[tuple[fx.Node, type[Way]]] = field(default_factory=set)
    _graph: fx.Graph = field(default_factory=fx.Graph)

    @cached_property
    def kept(self) -> set[fx.Node]:
        """Values that somebody outside may read."""
        return {*self.trace.escaped, *self.trace.outputs, *given_by_methods(self.trace.top)}

    def settled(self, surgeon: Surgeon, surgery: Surgery, refusals: dict[fx.Node, Refusal]) -> bool:
        """Give up what found no place and take up what may find one; whether nothing changed by that."""
        return not self._give_up(surgeon, surgery, refusals) and not self._take_up(surgeon, surgery, refusals)

    # --- giving up
    def _give_up(self, surgeon: Surgeon, surgery: Surgery, refusals: dict[fx.Node, Refusal]) -> bool:
        alive = surgeon.alive(surgery.sites)
        placed = {
            n
            for s in surgery.sites
            for n in s.region.form.ops
            if n not in alive and s.carrier not in surgeon.found.shares
        }
        gone: set[fx.Node] = set()
        for spread in list(self.active):
            why = None
            lost = next((n for n in spread.shares if n not in placed), None)
            if lost is not None:
                part = spread.leaves[spread.shares.index(lost)]
                said = (r for n in _asked_for(spread, lost) for r in (refusals.get(n), surgeon.found.refused.get(n)))
                own = next((r for r in said if r is not None), None)
                why = _unplaced(spread, part, own)
            elif gone & set(spread.leaves):
                why = Refusal(Code.DISTRIBUTE, "the norm in front of it stays", (spread.norm.name,))
            elif _kept(spread, surgery):
                sentence = "the original of a method that keeps a fallback would run a part of what it is made of"
                why = Refusal(Code.SPECIALIZED, sentence, (spread.norm.name,))
            if why is not None:
                self.active.remove(spread)
                self.refused[spread.norm] = why
                gone |= set(spread.shares)
        return bool(gone)

    # --- taking up
    def _take_up(self, surgeon: Surgeon, surgery: Surgery, refusals: dict[fx.Node, Refusal]) -> bool:
        found = surgeon.found
        fused = {n for s in surgery.sites if layered(found, s.region.form.ops) for n in s.region.form.ops}
        values = {s.region.value for s in surgery.sites}
        more: list[Spread] = []
        for node, op in list(found.ops.items()):
            if not isinstance(op, Affine) or op.paradigm not in PARADIGMS:
                continue
            if node in fused or node in found.shares:
                continue
            if node not in found.wanted and all(map(metadata_read, found.reads.readers.get(node, ()))):
                continue  # nobody has any use for what it computes
            for kind in (Back, Ahead):
                made = self._way(kind, node, op, surgeon, values, more, refusals)
                if made is not None:
                    more.append(made)
                    break
        for made in more:  # in front of those that stand behind its shares
            at = (i for i, s in enumerate(self.active) if set(s.leaves) & set(made.shares))
            self.active.insert(next(at, len(self.active)), made)
        return bool(more)

    def _way(
        self, kind: type[Way], node: fx.Node, op: Affine, surgeon: Surgeon, values: set[fx.Node], more: list[Spread],
        refusals: dict[fx.Node, Refusal],
    ) -> Spread | None:  # fmt: skip
        """The spread of one norm in one direction, None where there is none."""
        if (node, kind) in self._tried:
            return None
        found = surgeon.found
        way = kind(found, self.active, self.kept, values, node, op)
        if not way.starts():
            return None
        why = way.run() or self._asked(way) or _repeated(way, surgeon)
        if why is None and any(p.leaf in (*s.leaves, s.norm) or s.norm in way.tree for s in more for p in way.parts):
            return None  # two slices of one value: the next round sees the first one's share
        made = way.made(self._graph) if why is None else None
        if made is not None and way.passed and not decided("runs", (node,), lambda: self._runs(made, found), True):
            why = Refusal(Code.DISTRIBUTE, "what lies between it and a layer could not be run on values made up")
        if why is None:
            self._tried.add((node, kind))
            self.refused.pop(node, None)  # it may have waited for a norm in front of it
            assert made is not None
            way.adopted(made)
            return made
        told = node in refusals or node in found.refused or (node in self.refused and way.ahead)
        if way.any_layer and (way.mixed or not told):
            self.refused[node] = why.at(node.name)
        return None

    def _runs(self, made: Spread, found: Analysis) -> bool:
        """Whether what lies between a norm and its parts runs on values made up, as far as these may be looked at."""
        norms = {s.norm for s in (*self.active, made)}
        return not self.values or measure_spread(made, norms, found.facts, found.reads) is not None

    def _asked(self, way: Way) -> Refusal | None:
        """Whether the code around asks something: with another answer the parts may not meet in this norm."""
        inner = [*way.tree, *(p.leaf for p in way.parts)]
        chains = [list(n.meta["event"].ancestors()) for n in (way.norm, *inner)]
        common = set(chains[0]).intersection(*chains[1:])
        lowest = next((e for e in chains[0] if e in common), None)
        chains.append([e for n in inner for e in n.meta.get("through", ())])
        for event in (e for chain in chains for e in chain if e is lowest or e not in common):
            for question in event.questions:
                return Refusal(
                    Code.SPECIALIZED,
                    f"{event.function} asks for {asked(question)}; with another answer it may run other code",
                )
        return None


def _repeated(way: Way, surgeon: Surgeon) -> Refusal | None:
    """Whether the code in which the norm stands runs more than once."""
    calls: list[tuple[str, str]] = [(e.path, e.method) for e in all_events(surgeon.trace.top)]
    event: Event | None = way.norm.meta["event"]
    while event is not None:
        if calls.count((event.path, event.method)) > 1:
            return Refusal(Code.SHARED, f"{event.function}, in which it stands, is called twice")
        event = event.parent
    return None


def _asked_for(spread: Spread, share: fx.Node) -> list[fx.Node]:
    """Where it is said why a share found no place: at the share, or at the layers that would have taken it."""
    leaf = spread.parts()[spread.shares.index(share)]
    readers = [n for n in spread.reading if leaf in n.all_input_nodes] if spread.ahead else []
    return [share, *sorted(readers, key=lambda n: n.name)]


def _unplaced(spread: Spread, part: fx.Node, own: Refusal | None) -> Refusal:
    if own is None:
        return Refusal(Code.DISTRIBUTE, f"no layer takes the share of {named(part)}", (spread.norm.name,))
    return Refusal(own.code, f"its share of {named(part)} finds no place: {own.sentence}", (spread.norm.name,))


def _kept(spread: Spread, surgery: Surgery) -> bool:
    """Whether a method that keeps its original code runs any of what this changes."""
    sites: list[Site] = [s for s in surgery.sites if set(spread.shares) & s.region.form.ops]
    nodes = {n for s in sites for n in s.region.form.ops} | spread.tree | {spread.norm}
    paths = {n.meta["event"].path for n in nodes} | {str(n.target) for n in nodes if n.op == "call_module"}
    return any(not k or f"{p}.".startswith(f"{k}.") for p in paths for k in surgery.keeping)
