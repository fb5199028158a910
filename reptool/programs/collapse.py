"""Collapse: the regions of a graph that has no code, and the checked values of their layers.

A module's code may ask what a fused layer is, and its surgery needs a place; here a region stands wherever no operation
writes in place what it reads or computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from reptool.algebra.budget import too_large, weight_bytes
from reptool.errors import InputError, RegionWarning, warn
from reptool.frontends.exported import Read
from reptool.ir.nodes import name_of, weight_argument
from reptool.ir.ops import Affine
from reptool.ir.trace import Unanswerable
from reptool.plan.candidates import Analysis, analyse
from reptool.plan.forms import Form
from reptool.plan.inference import Facts
from reptool.plan.options import Options, allowed_by
from reptool.plan.select import Chooser, Region
from reptool.refusal import Code, Refusal
from reptool.report.left import left_over
from reptool.rewrite.lower import Geometry, Place, geometry, values
from reptool.verify.measure import Measured, Verify, measure
from reptool.verify.regions import EXACT, tolerance

_TURNS = ("permute", "t", "transpose", "numpy_t")


@dataclass(eq=False)
class Layer:
    """A region with the layer that computes it.

    Args:
        region: what is replaced.
        shape: the layer's geometry.
        weight: cast once, in the layer's own order.
        bias: the same, None for none.
        errors: what was measured, None where nothing was.
    """

    region: Region
    shape: Geometry
    weight: Tensor
    bias: Tensor | None
    errors: Measured | None


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


def collapse(read: Read, options: Options, verify: Verify, writable: Callable[[Geometry], Refusal | None]) -> Collapsed:
    """Choose the regions of a graph and work out their layers.

    Args:
        read: the graph.
        options: what the caller asked for.
        verify: how much each layer is measured against its operations.
        writable: why a layer of this geometry cannot be written as an operation of the graph; None where it can.

    Raises:
        InputError: a weight is NaN or infinite.
    """
    return _Collapse(read, options, verify, writable).done()


class _Collapse:
    def __init__(
        self, read: Read, options: Options, verify: Verify, writable: Callable[[Geometry], Refusal | None]
    ) -> None:
        self.read, self.reads, self.verify, self.writable = read, read.reads, verify, writable
        self.facts = Facts(read.writing, read.reads, {}, None)
        self.found = analyse(read.trace.graph, read.reads, self.facts, {}, read.trace.escaped, True)
        self.found.wanted |= self.found.soft.keys()  # whoever asks for a size reads the value
        self.rejected: dict[fx.Node, dict[frozenset[fx.Node], Refusal]] = {}
        self._by_options = allowed_by(options, self.found, read.trace)
        self._made: dict[Form, Layer | Refusal] = {}
        self.chooser = Chooser(self.found, self._allowed, options.force)

    def done(self) -> Collapsed:
        while True:
            regions = self.chooser.regions()
            made = {r: self._layer(r) for r in regions}
            problems = {r: m for r, m in made.items() if isinstance(m, Refusal)}
            if not problems:
                layers = [m for m in made.values() if isinstance(m, Layer)]
                left, written = self._left(layers), [m for m in layers if not self._stands(m.region)]
                return Collapsed(self.read, self.found, self.facts, written, left)
            for region, refusal in problems.items():  # each rejects a form, so this ends
                self.rejected.setdefault(region.value, {})[region.form.ops] = refusal.at(region.value.name)
                self.chooser.choose_again(self.chooser.island_of(region.value))

    def _allowed(self, node: fx.Node, form: Form) -> Refusal | None:
        refusal = self.rejected.get(node, {}).get(form.ops) or self._by_options(node, form)
        if refusal is not None:
            return refusal
        ops = [op for op in map(self.found.ops.get, form.ops) if isinstance(op, Affine) and op.layer]
        refusal = too_large(form.shape, sum(weight_bytes(op.shape) for op in ops))
        return None if refusal is None else refusal.at(node.name)

    def _layer(self, region: Region) -> Layer | Refusal:
        """The layer of a region, worked out once."""
        if region.form not in self._made:
            self._made[region.form] = self._written(region) or self._checked(region)
        return self._made[region.form]

    def _stands(self, region: Region) -> bool:
        """Whether a region is one operation of the graph with a weight that is turned, which costs nothing."""
        weight = weight_argument(region.value) if len(region.form.ops) == 1 else None
        while weight is not None and name_of(weight) in _TURNS:
            weight = weight.all_input_nodes[0]
        return weight is not None and weight.op == "get_attr"

    def _written(self, region: Region) -> Refusal | None:
        """Whether something outside of a region sees what is written in it, or the region what is written outside."""
        group = self.found.groups.get(region.value)
        reads, ops = self.reads, region.form.ops
        value = region.value if group is None else group.tree.top
        if region.root not in self.read.origins or value not in self.read.origins:
            return Refusal(Code.METHOD, "it is a part of what one operation of the graph computes")
        if group is not None:
            ops |= group.tree.ops.keys()
        outside = [
            n for n in ops if n in reads.mutates and reads.storage.get(reads.mutates[n], reads.mutates[n]) not in ops
        ]
        between = reads.written_between(region.root, reads.position[region.root] + 1, reads.position[region.value])
        if outside or between:
            return Refusal(Code.MUTATED, "it reads or writes a value that is changed in place")
        return None

    def _checked(self, region: Region) -> Layer | Refusal:
        shape, place = geometry(region.form.shape), self._place(region)
        refusal = next((r for r in (shape, place) if isinstance(r, Refusal)), None)
        if refusal is None:
            assert isinstance(shape, Geometry)
            refusal = self.writable(shape)
        if refusal is not None:
            return refusal
        assert isinstance(shape, Geometry) and isinstance(place, Place)
        kernel = region.form.kernel()
        cast = kernel if isinstance(kernel, Refusal) else values(kernel, place)
        errors: Measured | Refusal | None = None
        if self.verify and not isinstance(cast, Refusal):
            rank = self.facts.rank(region.root)
            errors = measure(region, shape, cast, self.found.ops, self.facts, self.reads, rank, self.verify)
        refusal = next((r for r in (cast, errors) if isinstance(r, Refusal)), None)
        if refusal is not None and refusal.code is Code.NON_FINITE:
            owners = ", ".join(dict.fromkeys(o for n in region.form.ops for o in self.found.ops[n].owners))
            raise InputError(f"NaN or infinity in a weight among {owners}; repair or exclude it first")
        if refusal is not None:
            return refusal
        assert not isinstance(cast, Refusal) and not isinstance(errors, Refusal)
        return _too_far(region, errors, place) or Layer(region, shape, *cast, errors)

    def _place(self, region: Region) -> Place | Refusal:
        """Dtype and device of a region, which are those of all that it reads and gives."""
        value = region.value.meta.get("share_of", region.value)
        shown = [self._shown(n) for n in (region.root, value)]
        if self.read.one_dtype:
            constants = [n for op in region.form.ops for n in op.all_input_nodes if n.meta["const"]]
            shown = [t for n in constants if isinstance(t := self._shown(n), Tensor) and t.is_floating_point()]
        kinds = {(v.dtype, v.device) for v in shown if isinstance(v, Tensor)}
        if len(kinds) != 1 or not all(isinstance(v, Tensor) for v in shown):
            return Refusal(Code.DTYPE, "it gives another dtype than it reads, or one that is not known")
        return Place(*kinds.pop())

    def _shown(self, node: fx.Node) -> object:
        """A fake of a value, None where nothing is known of it."""
        try:
            return self.read.writing.evaluate(node)
        except Unanswerable:
            return None

    def _left(self, layers: list[Layer]) -> dict[fx.Node, Refusal]:
        """Why the rest stays."""
        fused = {n for layer in layers for n in layer.region.form.ops}
        alive = self._alive(layers)
        given_up = {n: r for n, tried in self.rejected.items() for r in tried.values()}
        left = {n: r for n, r in {**self.found.refused, **given_up}.items() if n not in fused}
        tried: Mapping[fx.Node, Mapping[frozenset[fx.Node], Refusal]] = self.rejected
        left.update(left_over(self.read.trace, self.found, alive, left, tried, True))
        return {n: r.at(n.name) for n, r in left.items()}

    def _alive(self, layers: list[Layer]) -> set[fx.Node]:
        """The operations that are still computed."""
        forms = {layer.region.value: layer.region.root for layer in layers}
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


def _too_far(region: Region, errors: Measured | None, place: Place) -> Refusal | None:
    """The refusal of a layer that does not compute what its operations compute."""
    if errors is None or (errors.exact <= EXACT and errors.cast <= tolerance(place.dtype)):
        return None
    sentence = f"its layer is off by {errors.exact:.3g} in float64 and {errors.cast:.3g} in {place.dtype}"
    warn(f"{region.value.name}: {sentence}; it was left as it is. Please report this", RegionWarning)
    return Refusal(Code.UNVERIFIED, sentence)
