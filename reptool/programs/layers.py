"""The layer of one region of a graph: whether it can be written there, and its checked values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, fx

from reptool.algebra.kernel import Axis
from reptool.errors import InputError, RegionWarning, warn
from reptool.frontends.exported import Read
from reptool.ir.aliasing import Reads
from reptool.ir.ops import Affine
from reptool.ir.trace import Unanswerable
from reptool.passages.spread import origin
from reptool.plan.candidates import Analysis
from reptool.plan.forms import Form
from reptool.plan.inference.facts import Facts
from reptool.plan.select import Region
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry, Place, layer_of, split, values
from reptool.verify.measure import Measured, Verify, measure
from reptool.verify.regions import EXACT, tolerance

Writable = Callable[[Geometry], Refusal | None]
"""Why a layer of a geometry cannot be written as an operation of the graph; None where it can."""


@dataclass(eq=False)
class Piece:
    """One operator of a layer: all of it, or what reads the values of one resolution.

    Args:
        shape: its geometry.
        axes: of its kernel.
        weight: cast once, in the operator's own order.
        bias: the same, None for none.
        reads: the values that it reads, side by side.
        before: the operations that move positions in front of it, in order.
        behind: those behind it.
    """

    shape: Geometry
    axes: tuple[Axis, ...]
    weight: Tensor
    bias: Tensor | None
    reads: tuple[fx.Node, ...]
    before: tuple[fx.Node, ...] = ()
    behind: tuple[fx.Node, ...] = ()


@dataclass(eq=False)
class Layer:
    """A region with the layer that computes it.

    Args:
        region: what is replaced.
        shape: the layer's geometry.
        pieces: whose sum it is.
        errors: what was measured, None where nothing was.
    """

    region: Region
    shape: Geometry
    pieces: list[Piece]
    errors: Measured | None


class Layers:
    """The layers of the regions of one graph; what is said of a region is said once.

    Args:
        read: the graph.
        facts: of its constants and shapes.
        verify: how much each layer is measured against its operations.
        writable: which layers can be written.
    """

    def __init__(self, read: Read, facts: Facts, verify: Verify, writable: Writable) -> None:
        self.read, self.reads, self.facts = read, read.reads, facts
        self.verify, self.writable = verify, writable
        self._fits: dict[object, tuple[Geometry, Place] | Refusal] = {}
        self._checks: dict[object, tuple[Tensor, Tensor | None, Measured | None] | Refusal] = {}

    def refused(self, region: Region, found: Analysis) -> Refusal | None:
        """Why a region cannot be a layer, as far as that was asked: its values are looked at by `layer`."""
        key = _key(region.value, region.form, found)
        if key not in self._fits:
            self._fits[key] = self._written(region, found) or self._fit(region)
        refused = (known[key] for known in (self._fits, self._checks) if key in known)
        return next((r for r in refused if isinstance(r, Refusal)), None)

    def layer(self, region: Region, found: Analysis) -> Layer | Refusal:
        """The layer of a region.

        Raises:
            InputError: a weight is NaN or infinite.
        """
        refusal, key = self.refused(region, found), _key(region.value, region.form, found)
        fit = self._fits[key]
        if refusal is not None or isinstance(fit, Refusal):
            return refusal or fit  # type: ignore[return-value]  # one of the two
        if key not in self._checks:
            self._checks[key] = self._checked(region, found, *fit)
        made = self._checks[key]
        if isinstance(made, Refusal):
            return made
        return Layer(region, fit[0], self._pieces(region, fit[0], made[0], made[1], found), made[2])

    def _pieces(
        self, region: Region, shape: Geometry, weight: Tensor, bias: Tensor | None, found: Analysis
    ) -> list[Piece]:
        form = region.form
        each = split(shape, weight)
        if form.joined is not None:
            values, ups = form.joined.values, form.joined.ups
            return [
                Piece(
                    own, form.shape.axes or (), w, None if i else bias, tuple(values[v] for v in part.which),
                    behind=tuple(up for up in (ups[part.which[0]],) if up is not None and own.behind),
                )
                for i, ((own, w), part) in enumerate(zip(each, form.joined.parts, strict=True))
            ]  # fmt: skip
        moving = moving_in(form, found, self.reads)
        before, behind = moving[: form.at], moving[form.at :]
        return [Piece(shape, form.shape.axes or (), weight, bias, (form.root,), before, behind)]

    def _written(self, region: Region, found: Analysis) -> Refusal | None:
        """Whether something outside of a region sees what is written in it, or the region what is written outside."""
        group = found.groups.get(region.value)
        reads, ops = self.reads, region.form.ops
        value = origin(region.value) if group is None else group.tree.top
        moving = moving_in(region.form, found, reads)
        held = {*map(origin, region.form.reads), value, *moving, *(n.all_input_nodes[0] for n in moving)}
        if not held <= self.read.origins.keys():
            return Refusal(Code.METHOD, "it is a part of what one operation of the graph computes")
        if group is not None:
            ops |= group.tree.ops.keys()
        outside = [
            n for n in ops if n in reads.mutates and reads.storage.get(reads.mutates[n], reads.mutates[n]) not in ops
        ]
        end = reads.position[region.value]
        if outside or any(reads.written_between(r, reads.position[r] + 1, end) for r in map(origin, region.form.reads)):
            return Refusal(Code.MUTATED, "it reads or writes a value that is changed in place")
        return None

    def _fit(self, region: Region) -> tuple[Geometry, Place] | Refusal:
        shape, place = layer_of(region.form), self._place(region)
        if isinstance(shape, Refusal):
            return shape
        return place if isinstance(place, Refusal) else self.writable(shape) or (shape, place)

    def _checked(
        self, region: Region, found: Analysis, shape: Geometry, place: Place
    ) -> tuple[Tensor, Tensor | None, Measured | None] | Refusal:
        kernel = region.form.kernel()
        cast = kernel if isinstance(kernel, Refusal) else values(kernel, place, region.form.parts)
        errors: Measured | Refusal | None = None
        if self.verify and not isinstance(cast, Refusal):
            rank = self.facts.rank(region.root)
            errors = measure(region, shape, cast, found.ops, self.facts, self.reads, rank, self.verify)
        refusal = next((r for r in (cast, errors) if isinstance(r, Refusal)), None)
        if refusal is not None and refusal.code is Code.NON_FINITE:
            owners = ", ".join(dict.fromkeys(o for n in region.form.ops for o in found.ops[n].owners))
            raise InputError(f"NaN or infinity in a weight among {owners}; repair or exclude it first")
        if refusal is not None:
            return refusal
        assert not isinstance(cast, Refusal) and not isinstance(errors, Refusal)
        return _too_far(region, errors, place) or (*cast, errors)

    def _place(self, region: Region) -> Place | Refusal:
        """Dtype and device of a region, which are those of all that it reads and gives."""
        value = region.value.meta.get("share_of", region.value)
        shown = [self._shown(n) for n in (*map(origin, region.form.reads), value)]
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


def _key(value: fx.Node, form: Form, found: Analysis) -> object:
    """A region in words that are the same when the graph is analysed again, as long as it is the same region."""

    def known(node: fx.Node) -> object:
        return node.name if "parts" in node.meta else node

    ops = frozenset((known(n), type(op), *map(known, op.sources)) for n in form.ops for op in [found.ops[n]])
    return known(value), known(form.root), ops, form.around, form.at, form.parts


def moving_in(form: Form, found: Analysis, reads: Reads) -> tuple[fx.Node, ...]:
    """The operations of a form that move positions around its kernel, in order."""
    if not form.around:
        return ()
    ops = sorted(form.ops, key=reads.position.__getitem__)
    return tuple(n for n in ops if isinstance(op := found.ops[n], Affine) and op.resampling is not None)


def _too_far(region: Region, errors: Measured | None, place: Place) -> Refusal | None:
    """The refusal of a layer that does not compute what its operations compute."""
    if errors is None or (errors.exact <= EXACT and errors.cast <= tolerance(place.dtype)):
        return None
    sentence = f"its layer is off by {errors.exact:.3g} in float64 and {errors.cast:.3g} in {place.dtype}"
    warn(f"{region.value.name}: {sentence}; it was left as it is. Please report this", RegionWarning)
    return Refusal(Code.UNVERIFIED, sentence)
