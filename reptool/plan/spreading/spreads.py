"""Spreads: which norms are given to the parts of what they read, or to the layers behind them, all or none.

For each norm or scale that no region has taken, follow the graph back through sums, concatenations, slices and passages
to the parts, then on through passages to the layers behind it. Where each part ends in a layer and is read
nowhere else, a `Spread` is made and everything is planned again; where a share then finds no layer, the spread is
given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from reptool.capture.exposed_values import given_by_methods
from reptool.ir.aliasing import Reads
from reptool.ir.decisions import decided
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Affine
from reptool.ir.trace import Trace
from reptool.passages.spread import Spread
from reptool.plan.candidates import Analysis
from reptool.plan.inference.facts import Facts
from reptool.plan.select import Region
from reptool.plan.spreading.ahead import Ahead
from reptool.plan.spreading.back import Back, is_slice
from reptool.plan.spreading.way import Way, layered
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal

PARADIGMS = ("bn", "scale")
Measure = Callable[[Spread, set[fx.Node], Facts, Reads], "float | None"]
"""The error of the shares of a norm against the norm, None where nothing could be run."""


@dataclass(frozen=True)
class Outcome:
    """What came of a plan.

    Args:
        found: what it was made of.
        regions: what becomes layers.
        gone: operations that nobody computes any more, since a layer does.
        refusals: why other values are no layers.
        kept: whether code that stays beside the layers runs one of these operations.
    """

    found: Analysis
    regions: list[Region]
    gone: set[fx.Node]
    refusals: Mapping[fx.Node, Refusal]
    kept: Callable[[set[fx.Node]], bool] = lambda nodes: False


@dataclass
class Spreads:
    """The norms of one trace that are given to parts.

    Args:
        trace: what was seen.
        measure: the error of shares against their norm.
        stays: why the front end cannot carry one out, None where it can.
        values: whether values may be looked at.
        active: those that are tried now, each behind those it builds on.
        refused: norms that stay, and why.
    """

    trace: Trace
    measure: Measure
    stays: Callable[[Way], Refusal | None]
    values: bool = True
    active: list[Spread] = field(default_factory=list)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)
    _tried: set[tuple[fx.Node, type[Way]]] = field(default_factory=set)
    _graph: fx.Graph = field(default_factory=fx.Graph)

    @cached_property
    def kept(self) -> set[fx.Node]:
        """Values that somebody outside may read."""
        return {*self.trace.escaped, *self.trace.outputs, *given_by_methods(self.trace.top)}

    def settled(self, outcome: Outcome) -> bool:
        """Give up what found no place and take up what may find one; whether nothing changed by that."""
        return not self._give_up(outcome) and not self._take_up(outcome)

    def leave(self, spread: Spread, why: Refusal) -> None:
        """Give one up, whatever came of it."""
        self.active.remove(spread)
        self.refused[spread.norm] = why

    # --- giving up
    def _give_up(self, outcome: Outcome) -> bool:
        found = outcome.found
        gone: set[fx.Node] = set()
        for spread in list(self.active):
            why = None
            lost = next((n for n in spread.shares if n not in outcome.gone), None)
            if lost is not None:
                part = spread.leaves[spread.shares.index(lost)]
                said = (r for n in _asked_for(spread, lost) for r in (outcome.refusals.get(n), found.refused.get(n)))
                own = next((r for r in said if r is not None), None)
                why = _unplaced(spread, part, own)
            elif gone & set(spread.leaves):
                why = Refusal(Code.DISTRIBUTE, "the norm in front of it stays", (spread.norm.name,))
            elif outcome.kept(_changed(spread, outcome)):
                sentence = "the original of a method that keeps a fallback would run a part of what it is made of"
                why = Refusal(Code.SPECIALIZED, sentence, (spread.norm.name,))
            if why is not None:
                self.leave(spread, why)
                gone |= set(spread.shares)
        return bool(gone)

    # --- taking up
    def _take_up(self, outcome: Outcome) -> bool:
        found = outcome.found
        cut = _cut(outcome)
        whole = [r for r in outcome.regions if r not in cut]
        fused = {n for r in whole if layered(found, r.form.ops) for n in r.form.ops}
        values = {r.value for r in whole}
        more: list[Spread] = []
        for node, op in list(found.ops.items()):
            if not isinstance(op, Affine) or op.paradigm not in PARADIGMS:
                continue
            if node in fused or node in found.shares:
                continue
            if node not in found.wanted and all(map(metadata_read, found.reads.readers.get(node, ()))):
                continue  # nobody has any use for what it computes
            for kind in (Back, Ahead):
                made = self._way(kind, node, op, outcome, values, more)
                if made is not None:
                    more.append(made)
                    break
        for made in more:  # in front of those that stand behind its shares
            at = (i for i, s in enumerate(self.active) if set(s.leaves) & set(made.shares))
            self.active.insert(next(at, len(self.active)), made)
        return bool(more)

    def _way(
        self, kind: type[Way], node: fx.Node, op: Affine, outcome: Outcome, values: set[fx.Node], more: list[Spread]
    ) -> Spread | None:  # fmt: skip
        """The spread of one norm in one direction, None where there is none."""
        if (node, kind) in self._tried:
            return None
        found = outcome.found
        way = kind(found, self.active, self.kept, values, node, op)
        if not way.starts():
            return None
        why = way.run() or self.stays(way)
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
        told = node in outcome.refusals or node in found.refused or (node in self.refused and way.ahead)
        if way.any_layer and (way.mixed or not told):
            self.refused[node] = why.at(node.name)
        return None

    def _runs(self, made: Spread, found: Analysis) -> bool:
        """Whether what lies between a norm and its parts runs on values made up, as far as these may be looked at."""
        norms = {s.norm for s in (*self.active, made)}
        return not self.values or self.measure(made, norms, found.facts, found.reads) is not None


def _cut(outcome: Outcome) -> set[Region]:
    """Regions that compute one layer in pieces, each with a norm of its own; as one layer that is cut it reads once."""
    ops = outcome.found.ops
    times = Counter(n for r in outcome.regions for n in r.form.ops if layered(outcome.found, (n,)))
    pieces = (r for r in outcome.regions if any(is_slice(ops[n]) for n in r.form.ops))
    return {r for r in pieces if any(times[n] > 1 for n in r.form.ops)}


def _asked_for(spread: Spread, share: fx.Node) -> list[fx.Node]:
    """Where it is said why a share found no place: at the share, or at the layers that would have taken it."""
    leaf = spread.parts()[spread.shares.index(share)]
    readers = [n for n in spread.reading if leaf in n.all_input_nodes] if spread.ahead else []
    return [share, *sorted(readers, key=lambda n: n.name)]


def _unplaced(spread: Spread, part: fx.Node, own: Refusal | None) -> Refusal:
    if own is None:
        return Refusal(Code.DISTRIBUTE, f"no layer takes the share of {named(part)}", (spread.norm.name,))
    return Refusal(own.code, f"its share of {named(part)} finds no place: {own.sentence}", (spread.norm.name,))


def _changed(spread: Spread, outcome: Outcome) -> set[fx.Node]:
    """All operations that a spread and the layers that took its shares change."""
    shares = set(spread.shares)
    taken = {n for r in outcome.regions if shares & r.form.ops for n in r.form.ops}
    return {*taken, *spread.tree, spread.norm}
