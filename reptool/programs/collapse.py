"""Collapse: the regions of a graph that has no code, the checked values of their layers, and what norms become of it.

A module's code may ask what a fused layer is, and its surgery needs a place; here a region stands wherever no operation
writes in place what it reads or computes. Norms go to the parts in front of them and to the layers behind them as they
do in modules (`plan.spreading`, `passages.own_affines`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from reptool.algebra.budget import too_large, weight_bytes
from reptool.errors import RegionWarning, warn
from reptool.frontends.exported import Read
from reptool.ir.nodes import name_of, weight_argument
from reptool.ir.ops import Affine
from reptool.passages.own_affines import OwnAffines
from reptool.passages.spread import origin
from reptool.plan.candidates import Analysis, analyse, out_of_reach
from reptool.plan.forms import Form
from reptool.plan.inference.facts import Facts
from reptool.plan.options import Options, allowed_by
from reptool.plan.select import Chooser, Region
from reptool.plan.spreading.spreads import Outcome, Spreads
from reptool.plan.spreading.way import Way
from reptool.programs.layers import Layer, Layers, Writable
from reptool.pysource.places import place_of
from reptool.refusal import Code, Refusal
from reptool.report.left import left_over, why_left
from reptool.verify.bare import measure_bare
from reptool.verify.measure import Verify
from reptool.verify.regions import EXACT
from reptool.verify.spreads import measure_spread

_TURNS = ("permute", "t", "transpose", "numpy_t")
Rejected = dict[fx.Node, dict[frozenset[fx.Node], Refusal]]


@dataclass
class Collapsed:
    """What is to be written.

    Args:
        read: the graph.
        found: what its operations are.
        facts: of its constants and shapes.
        layers: in graph order.
        refusals: what stays, and why, by node of the trace.
    """

    read: Read
    found: Analysis
    facts: Facts
    layers: list[Layer] = field(default_factory=list)
    refusals: dict[fx.Node, Refusal] = field(default_factory=dict)

    def like(self, layer: Layer) -> fx.Node | None:
        """The operation in whose place a layer stands: the first with a weight of the same shape, else with any."""
        found: list[tuple[bool, float, fx.Node]] = []
        for node in layer.region.form.ops:
            op = self.found.ops[node]
            weight = weight_argument(node) if isinstance(op, Affine) and op.layer else None
            if weight is not None and self.facts.cone(weight):
                held = weight.meta.get("tensor")
                other = not isinstance(held, Tensor) or held.shape != layer.pieces[0].weight.shape
                found.append((other, self.read.reads.position[node], node))
        return min(found, key=lambda f: f[:2])[2] if found else None

    def weight_path(self, layer: Layer) -> str:
        """The name under which the weight of a layer is kept: that of the weight in whose place it stands."""
        old = self.like(layer)
        weight = None if old is None else weight_argument(old)
        return f"{layer.region.value.name}.weight" if weight is None else self.facts.cone(weight)[0]


def collapse(read: Read, options: Options, verify: Verify, writable: Writable) -> Collapsed:
    """Choose the regions of a graph and work out their layers.

    Args:
        read: the graph.
        options: what the caller asked for.
        verify: how much each layer is measured against its operations.
        writable: why a layer of a geometry cannot be written as an operation of the graph; None where it can.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    return _Collapse(read, options, verify, writable).done()


class _Collapse:
    def __init__(self, read: Read, options: Options, verify: Verify, writable: Writable) -> None:
        self.read, self.reads, self.options, self.verify = read, read.reads, options, verify
        self.facts = Facts(read.writing, read.reads, {}, None)
        self.layers = Layers(read, self.facts, verify, writable)
        self.spreads = Spreads(read.trace, measure_spread, self._stays)
        self.affines = OwnAffines()

    def done(self) -> Collapsed:
        while True:
            self._analyse()
            if self._out_of_reach():
                continue
            regions = self._regions()
            if self._moved(regions):
                continue
            made = [self.layers.layer(r, self.found) for r in regions]
            layers = [m for m in made if isinstance(m, Layer)]
            if len(layers) < len(made) or self._off():
                continue
            left, written = self._left(regions), [m for m in layers if not self._stands(m.region)]
            return Collapsed(self.read, self.found, self.facts, written, left)

    def _analyse(self) -> None:
        self.found = analyse(
            self.read.trace.graph, self.reads, self.facts, {}, self.read.trace.escaped, True,
            self.spreads.active.copy(), self.affines, self.options.price, self.options.several,
        )  # fmt: skip
        self.found.wanted |= self.found.soft.keys()  # whoever asks for a size reads the value
        self.rejected: Rejected = {}
        self._by_options = allowed_by(self.options, self.found, self.read.trace)

    def _regions(self) -> list[Region]:
        """What is chosen, of which all can be written as far as is known."""
        chooser = Chooser(self.found, self._allowed, self.options.force)
        while True:
            regions = chooser.regions()
            refused = {r: self.layers.refused(r, self.found) for r in regions}
            if not any(refused.values()):
                return regions
            for region, refusal in refused.items():  # each rejects a form, so this ends
                if refusal is not None:
                    self.rejected.setdefault(region.value, {})[region.form.ops] = refusal.at(region.value.name)
                    chooser.choose_again(chooser.island_of(region.value))

    def _allowed(self, node: fx.Node, form: Form) -> Refusal | None:
        refusal = self.rejected.get(node, {}).get(form.ops) or self._by_options(node, form)
        if refusal is not None:
            return refusal
        ops = [op for op in map(self.found.ops.get, form.ops) if isinstance(op, Affine) and op.layer]
        refusal = too_large(form.shape, sum(weight_bytes(op.shape) for op in ops))
        return None if refusal is None else refusal.at(node.name)

    # --- norms that move
    def _stays(self, way: Way) -> Refusal | None:
        """Whether a norm is an operation of the graph, and what it reads a value of it."""
        if {way.norm, origin(way.op.source)} <= self.read.origins.keys():
            return None
        return Refusal(Code.METHOD, "it is a part of what one operation of the graph computes")

    def _out_of_reach(self) -> bool:
        """Whether the scale and shift of a norm go on past a view, or stay since no layer can take them."""
        found = self.found
        return self.affines.go_on(found.ops, found.wanted) or self._kept(found.wanted | out_of_reach(found, {}))

    def _kept(self, computed: set[fx.Node]) -> bool:
        """Whether the scale and shift of a norm stay since they would still be computed."""
        reason = why_left(self.read.trace, self.found, self._refusals(), self.rejected, True)
        return self.affines.keep(computed, reason)

    def _moved(self, regions: list[Region]) -> bool:
        """Whether norms, or the scales and shifts of norms, go elsewhere from now on."""
        found, alive = self.found, self._alive(regions)
        if self._kept(alive | out_of_reach(found, self.rejected)):
            return True
        taken = {n for r in regions if not r.form.ops <= found.shares.keys() for n in r.form.ops}
        return not self.spreads.settled(Outcome(found, regions, taken - alive, self._refusals()))

    def _off(self) -> bool:
        """Whether a norm that moved turned out to be another one where it went; it stays then."""
        if not self.verify:
            return False
        norms, before = {s.norm for s in self.spreads.active}, len(self.spreads.active) + len(self.affines.active)
        for spread in self.found.spreads:
            error = measure_spread(spread, norms, self.facts, self.reads)
            if error is None or not error <= EXACT:
                self.spreads.leave(spread, _unlike(spread.norm, error))
        for behind in list(self.found.bare.values()):
            error = measure_bare(behind, self.facts, self.reads)
            if not error <= EXACT:
                self.affines.leave(behind.norm, _unlike(behind.norm, error))
        return len(self.spreads.active) + len(self.affines.active) < before

    # --- what is left
    def _stands(self, region: Region) -> bool:
        """Whether a region is one operation of the graph with a weight that is turned, which costs nothing."""
        weight = weight_argument(region.value) if len(region.form.ops) == 1 else None
        while weight is not None and name_of(weight) in _TURNS:
            weight = weight.all_input_nodes[0]
        return weight is not None and weight.op == "get_attr"

    def _refusals(self) -> dict[fx.Node, Refusal]:
        given_up = {n: r for n, tried in self.rejected.items() for r in tried.values()}
        return {**self.found.refused, **given_up}

    def _left(self, regions: list[Region]) -> dict[fx.Node, Refusal]:
        """Why the rest stays."""
        fused = {n for r in regions for n in r.form.ops}
        left = {n: r for n, r in {**self._refusals(), **self.spreads.refused}.items() if n not in fused}
        left.update(self.affines.left())
        tried: Mapping[fx.Node, Mapping[frozenset[fx.Node], Refusal]] = self.rejected
        left.update(left_over(self.read.trace, self.found, self._alive(regions), left, tried, True))
        return {n: r.at(n.name) for n, r in left.items() if n not in self.affines.active}

    def _alive(self, regions: list[Region]) -> set[fx.Node]:
        """The operations that are still computed."""
        forms = {r.value: r.root for r in regions}
        groups = [g for v, g in self.found.groups.items() if v in forms]
        instead = {(n, t): g.value for g in groups for n in g.tree.ops for t in g.terms}
        todo, seen = list(self.found.wanted), set[fx.Node]()
        while todo:
            node = todo.pop()
            if node in seen or node not in self.found.ops:
                continue
            seen.add(node)
            todo += (
                [forms[node]] if node in forms else [instead.get((node, s), s) for s in self.found.ops[node].sources]
            )
        return seen - forms.keys()


def _unlike(norm: fx.Node, error: float | None) -> Refusal:
    """The refusal of a norm that is another one where it went."""
    sentence = f"the norm {place_of(norm)!r} is off by {error} where it went"
    warn(f"{sentence}; it was left as it is. Please report this", RegionWarning)
    return Refusal(Code.UNVERIFIED, sentence, (norm.name,))
