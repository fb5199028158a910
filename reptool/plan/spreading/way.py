"""The way of a norm to the values that may take it: what both directions have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.decisions import decided
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Affine, Concat, Pieces, View
from reptool.lift.layout.resampling import is_resampling
from reptool.passages import Passage, crossed
from reptool.passages.spread import Split, Spread, add_share, origin
from reptool.plan.candidates import Analysis
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal


@dataclass(frozen=True)
class At:
    """What is known of a norm's numbers at one value on the way.

    Args:
        axes: axes behind the channels; None for a number, which fits any.
        count: how many channels there are, None for a number.
        steps: from the norm's numbers to those of this value.
        shifted: whether the shift comes along.
    """

    axes: int | None
    count: int | None
    steps: tuple[Split, ...] = ()
    shifted: bool = True

    def then(self, step: Split | None, count: int | None, shifted: bool) -> At:
        """One step further."""
        steps = self.steps if step is None else (*self.steps, step)
        return replace(self, steps=steps, count=count, shifted=shifted)

    def lost(self) -> At:
        """Beyond something that the numbers do not cross."""
        return At(None, None, (), False)


@dataclass
class Part:
    """A value that is to take a share.

    Args:
        leaf: the value.
        at: the norm's numbers there.
    """

    leaf: fx.Node
    at: At


class Way:
    """The way from one norm to the values that may take it."""

    ahead = False

    def __init__(
        self, found: Analysis, active: list[Spread], kept: set[fx.Node], values: set[fx.Node], norm: fx.Node, op: Affine
    ) -> None:
        self.found, self.kept, self.values, self.norm, self.op = found, kept, values, norm, op
        self.active, self.through = active, {s.norm: s for s in active}
        self.tree: list[fx.Node] = []
        self.reading: list[fx.Node] = []
        self.parts: list[Part] = []
        self.beside: dict[fx.Node, int] = {}
        self.alike = False
        self.any_layer = False
        self.mixed = self.passed = False
        self.keeps_rank = True

    def starts(self) -> bool:
        """Whether there is such a way at all."""
        raise NotImplementedError

    def collect(self) -> Refusal | None:
        """Collect tree and parts; the first reason why the norm has to stay."""
        raise NotImplementedError

    def run(self) -> Refusal | None:
        """As `collect`, and what the norm itself must be."""
        first = self.collect()
        shape = self.op.shape
        if not shape.is_pointwise or not shape.is_channelwise:
            return first or Refusal(Code.DISTRIBUTE, "it is no map of each channel by itself")
        if self.norm in self.found.reads.mutates:
            return first or Refusal(Code.MUTATED, "it writes into the value it reads")
        if self.ahead and self._is_written():
            return first or Refusal(Code.MUTATED, "what it reads or gives is written in place before the layers run")
        if self.op.rank_guard is not None and not self.keeps_rank:
            return first or Refusal(Code.RANK_UNKNOWN, "how many axes it sees is known from the example inputs alone")
        return first

    def _is_written(self) -> bool:
        """Whether what the norm reads, or what it gives, is written before the layers behind it run."""
        reads = self.found.reads
        last = max((reads.position[n] for n in self.reading), default=0)
        return any(
            reads.written_between(n, reads.position[self.norm], last) for n in (self.norm, origin(self.op.source))
        )

    def made(self, graph: fx.Graph) -> Spread:
        """The spread of what was collected."""
        spread = Spread(
            self.norm, self.op, self.op.source, frozenset(self.tree), frozenset(self.reading), self.ahead,
            [self._axes(p) for p in self.parts], [self._width(p.leaf, self._axes(p)) for p in self.parts],
        )  # fmt: skip
        spread.alike, spread.beside = self.alike, self.beside
        readers = self.found.reads.readers
        for part in self.parts:
            add_share(spread, graph, part.leaf, list(part.at.steps), part.at.shifted, part.at.axes)
            readers[spread.shares[-1]] = list(readers.get(part.leaf, ()))
        return spread

    def adopted(self, made: Spread) -> None:
        """The spread is tried from now on."""

    def _begin(self) -> At:
        axes = self.op.shape.axes
        return At(None if axes is None else len(axes), self.op.shape.out_channels)

    def _axes(self, part: Part) -> int:
        """Axes behind the channels of a part; of a number, as many as a concatenation on the way has."""
        if part.at.axes is not None:
            return part.at.axes
        return next((op.axes for n in self.tree if isinstance(op := self.found.ops.get(n), Concat)), 2)

    def _passage(self, node: fx.Node) -> Passage | None:
        op = self.found.ops.get(node)
        other = op is None or isinstance(op, (View, Pieces)) or is_resampling(op)
        own = self.found.passages.get(node) if other else None
        return own or crossed(node, op)

    def _blocked(self, node: fx.Node, passage: Passage, at: At) -> Refusal | None:
        """Why this passage lets the norm's numbers not across."""
        self.passed = True
        needs = (passage.positive, not passage.shifts and at.shifted)
        if not passage.positive and passage.shifts:
            return None
        kernel = self.op.load
        meets = decided(f"crosses {needs}", (self.norm, node), lambda: _meets(kernel(), *needs), "unknown")
        if meets == "unknown":
            return Refusal(Code.DISTRIBUTE, f"whether it moves across {named(node)} depends on values")
        if meets == "negative":
            sentence = f"{named(node)} picks values by their order, which a negative scale turns round"
            return Refusal(Code.DISTRIBUTE, sentence)
        if meets == "shifted":
            sentence = f"{named(node)} does not keep constants (it adds up, or counts what lies beyond the border)"
            return Refusal(Code.DISTRIBUTE, f"{sentence}, and there is a shift")
        return None

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        return [r for r in self.found.reads.readers.get(node, ()) if not metadata_read(r)]

    def _width(self, node: fx.Node, axes: int) -> int | None:
        if node in self.through and self.through[node].op.shape.out_channels is not None:
            return self.through[node].op.shape.out_channels
        forms = self.found.forms.get(node, {}).values()
        written = {f.shape.out_channels for f in forms if f.shape.out_channels is not None}
        if len(written) == 1:
            return written.pop()
        passage = self._passage(node)
        before = [] if passage is None else [b for b, a in passage.moves.items() if a == axes and not passage.joined]
        if passage is None or not before:
            return self.found.facts.channels(node, axes)
        count = self._width(passage.source, before[0])
        return None if count is None else count // passage.blocks


def _meets(kernel: Kernel, positive: bool, unshifted: bool) -> str:
    """What of a norm does not cross a passage for positive scales, or for none that shift: '' if all of it does."""
    if kernel.weight is None or kernel.weight.is_meta:
        return "unknown"
    if positive and bool((kernel.weight < 0).any()):
        return "negative"
    return "shifted" if unshifted and not kernel.bias_is_zero() else ""


def layered(found: Analysis, nodes: Iterable[fx.Node]) -> bool:
    """Whether one of these is a layer."""
    return any(isinstance(op, Affine) and op.layer for op in map(found.ops.get, nodes))
