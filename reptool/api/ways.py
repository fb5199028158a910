"""The ways of a norm: back to the parts in front that may take it, or ahead through passages to the layers behind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.decisions import decided
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Affine, Concat, Op, Pieces, Sum, View
from reptool.passages import Passage, crossed
from reptool.passages.spread import (
    Split,
    Spread,
    add_share,
    origin,
    over_blocks,
    over_concat,
    over_equals,
    over_slice,
    over_sum,
)
from reptool.plan.candidates import Analysis
from reptool.pysource.places import listed, named
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
        if self.op.rank_guard is not None and not self.keeps_rank:
            return first or Refusal(Code.RANK_UNKNOWN, "how many axes it sees is known from the example inputs alone")
        return first

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
        own = self.found.passages.get(node) if op is None or isinstance(op, (View, Pieces)) else None
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


class Back(Way):
    """The way back from one norm to the parts it may be given to."""

    def starts(self) -> bool:
        """Whether a sum, concatenation, slice or passage that stands as it is lies in front of the norm."""
        node, passed = self.op.source, False
        while True:
            if node in self.values:
                return passed
            op = self.found.ops.get(node)
            passage = self._passage(node)
            if node in self.through:
                node = self.through[node].source
            elif isinstance(op, Affine) and op.paradigm == "identity" and not op.layer:
                node = op.source
            elif passage is not None:
                node, passed = passage.source, True
            else:
                if not passed and isinstance(op, Affine) and is_slice(op) and self.op.shape.channels is None:
                    self.op = _on_channels(self.op, op)
                self.mixed = isinstance(op, (Sum, Concat)) or is_slice(op)
                return self.mixed or passed

    def collect(self) -> Refusal | None:
        """Back from what the norm reads."""
        return self._back(self.op.source, self.norm, self._begin())

    def made(self, graph: fx.Graph) -> Spread:
        """The parts are read by the tree."""
        self.reading = self.tree
        return super().made(graph)

    def _back(self, node: fx.Node, reader: fx.Node | None, at: At) -> Refusal | None:
        op = self.found.ops.get(node)
        first: Refusal | None = None
        if reader is not None and not self._alone(node, reader):
            others = listed(n for n in self._readers(node) if n is not reader)
            first = Refusal(Code.READ_ELSEWHERE, f"{named(node)}, in front of it, is also read by {others}")
        if node in self.through:
            self.tree.append(node)
            return self._back(self.through[node].source, node, at) or first
        if node not in self.values:
            if isinstance(op, Affine) and op.paradigm == "identity" and not op.layer:
                self.tree.append(node)
                return self._back(op.source, node, at) or first
            passage = self._passage(node)
            if passage is not None:
                across = self._across(node, passage, at)
                if isinstance(across, At) or not self._layered_at(node):
                    self.tree.append(node)
                    self.keeps_rank &= passage.keeps_rank
                    refusal = across if isinstance(across, Refusal) else None
                    source = passage.source
                    for spread in self.active:
                        source = spread.instead(node, source)
                    deeper = self._back(source, node, across if isinstance(across, At) else at.lost())
                    return first or refusal or deeper
            if isinstance(op, Affine) and is_slice(op):
                cut = self._slice(node, op, at)
                first = first or (cut if isinstance(cut, Refusal) else None)
                return self._back(op.source, None, at.lost() if isinstance(cut, Refusal) else cut) or first
            if isinstance(op, (Sum, Concat)):
                self.tree.append(node)
                ways = self._sum(op, at) if isinstance(op, Sum) else self._concat(op, at)
                if isinstance(ways, Refusal):
                    first, ways = first or ways, [at.lost()] * len(op.sources)
                for source, step in zip(op.sources, ways, strict=True):
                    first = self._back(source, node, step) or first
                return first
        return self._leaf(node, at) or first

    def _across(self, node: fx.Node, passage: Passage, at: At) -> At | Refusal:
        blocked = self._blocked(node, passage, at)
        if blocked is not None or at.axes is None:
            return blocked or at
        before = [b for b, moved in passage.moves.items() if moved == at.axes and not passage.joined.get(b, False)]
        if not before:
            return Refusal(Code.LAYOUT, f"{named(node)} does not keep its channels one axis")
        if passage.blocks == 1 or at.count is None:
            return replace(at, axes=before[0])
        at = at.then(over_blocks(passage.blocks), at.count * passage.blocks, at.shifted)
        return replace(at, axes=before[0])

    def _layered_at(self, node: fx.Node) -> bool:
        return any(layered(self.found, (node, *f.ops)) for f in self.found.forms.get(node, {}).values())

    def _leaf(self, node: fx.Node, at: At) -> Refusal | None:
        found = node in self.values or node in self.found.shares or self._layered_at(node)
        self.any_layer |= found
        twice = any(p.leaf is node for p in self.parts)
        self.parts.append(Part(node, at))
        if not found:
            return Refusal(Code.DISTRIBUTE, f"{named(node)}, a part of what it reads, ends in no layer to take it")
        width = None if at.axes is None else self._width(node, at.axes)
        if at.count is not None and width is not None and width != at.count:
            return Refusal(Code.CHANNELS, f"{named(node)} has {width} channels, and its numbers there are {at.count}")
        return Refusal(Code.READ_ELSEWHERE, f"{named(node)} is a part of it twice") if twice else None

    def _sum(self, op: Sum, at: At) -> list[At] | Refusal:
        if any(m is not None and not _is_number(m) for m in op.maps):
            return Refusal(Code.DISTRIBUTE, "a summand goes through a map of its own")
        one = next((i for i, m in enumerate(op.maps) if m is None), None)
        if one is None:
            return Refusal(Code.DISTRIBUTE, "every summand has a factor of its own")
        count = len(op.sources)
        if self._shares_layer(op) and op.maps == [None] * count and at.shifted:
            self.alike, parts = True, [len(self._summands(self.found.ops.get(s))) or 1 for s in op.sources]
            return [at.then(over_equals(sum(parts), n), at.count, True) for n in parts]
        return [at.then(over_sum(count, i, one), at.count, at.shifted and i == one) for i in range(count)]

    def _shares_layer(self, op: Sum) -> bool:
        """Whether one layer computes several of these summands: they need the same share."""
        owners = [o for summand in self._summands(op) for o in self._layers_at(summand)]
        return len(set(owners)) < len(owners)

    def _summands(self, op: Op | None) -> list[fx.Node]:
        """What a sum of sums adds up."""
        out: list[fx.Node] = []
        for source in op.sources if isinstance(op, Sum) else ():
            inner = None if source in self.values else self.found.ops.get(source)
            out += self._summands(inner) or [source]
        return out

    def _layers_at(self, node: fx.Node) -> set[str]:
        ops = (self.found.ops[n] for f in self.found.forms.get(node, {}).values() for n in f.ops)
        return {o for op in ops if isinstance(op, Affine) and op.layer for o in op.owners}

    def _concat(self, op: Concat, at: At) -> list[At] | Refusal:
        if at.count is None:
            return [at] * len(op.sources)  # one number for all channels
        if at.axes is None or op.axes != at.axes:
            return Refusal(Code.LAYOUT, "the parts lie along another axis than its channels")
        widths = [self._width(s, op.axes) for s in op.sources]
        known = [w for w in widths if w is not None]
        if len(known) < len(widths):
            return Refusal(Code.CHANNELS, "how many channels its parts have is not known; give example_inputs")
        if sum(known) != at.count:
            return Refusal(Code.CHANNELS, f"parts of {known} channels do not add up to the {at.count} it has")
        return [at.then(over_concat(known, i), w, at.shifted) for i, w in enumerate(known)]

    def _slice(self, node: fx.Node, op: Affine, at: At) -> At | Refusal:
        """The step across a slice of channels that nothing but the norm reads, of a value of which all read slices."""
        taken = _rows(op)
        direct = self._readers(op.source)
        cuts = [r for r in direct if isinstance(self.found.ops.get(r), Pieces)]
        slices = [r for r in direct if r not in cuts] + [r for c in cuts for r in self._readers(c)]
        self.tree += [*cuts, *slices]
        whole = [n for n in slices if not is_slice(self.found.ops.get(n))]
        if self.kept & {op.source, *cuts} or whole:
            sentence = f"{named(op.source)}, of which it reads a slice, is also read by {listed(whole)}"
            return Refusal(Code.READ_ELSEWHERE, sentence)
        clash = [n for n in slices if n is not node and taken & _rows(self.found.ops[n])]
        if clash:
            return Refusal(
                Code.READ_ELSEWHERE, f"channels of {named(node)}, in front of it, are also read by {listed(clash)}"
            )
        channels, axes = op.shape.channels, op.shape.axes
        assert channels is not None
        if len(taken) != channels.out_channels:
            return Refusal(Code.DISTRIBUTE, f"{named(node)}, in front of it, holds a channel twice")
        if at.count is None or at.axes is None:
            return Refusal(Code.CHANNELS, "it is one number for all channels, of which it reads some")
        if at.axes != len(axes or ()):
            return Refusal(Code.LAYOUT, "the slice lies along another axis than its channels")
        return at.then(over_slice(channels.in_channels, channels.lo.tolist()), channels.in_channels, at.shifted)

    def _alone(self, node: fx.Node, reader: fx.Node) -> bool:
        return node not in self.kept and self._readers(node) == [reader]


class Ahead(Way):
    """The way from one norm through passages to the layers behind it."""

    ahead = True

    def starts(self) -> bool:
        """Whether a passage or a concatenation reads the norm."""
        return any(self._passed(r) or r in self.through or self._joins(r) for r in self._readers(self.norm))

    def collect(self) -> Refusal | None:
        """On to whoever reads what the norm gives."""
        return self._on(self.norm, self._begin(), None)

    def _joins(self, reader: fx.Node) -> bool:
        return isinstance(self.found.ops.get(reader), Concat)

    def _passed(self, reader: fx.Node) -> bool:
        op = self.found.ops.get(reader)
        return self._passage(reader) is not None and not (isinstance(op, Affine) and op.layer)

    def _on(self, node: fx.Node, at: At, joined: bool | None) -> Refusal | None:
        """Everything that reads a value; `joined` tells how positions have become channels, None if they have not."""
        first: Refusal | None = None
        readers = self._readers(node)
        if node in self.kept or not readers:
            return Refusal(Code.READ_ELSEWHERE, f"{named(node)}, behind it, is also read by {listed([])}")
        layers: list[tuple[fx.Node, Affine]] = []
        for reader in readers:
            op = self.found.ops.get(reader)
            if reader in self.through and self.through[reader].ahead and self.through[reader].source is node:
                self.tree.append(reader)
                first = self._on(reader, at, joined) or first
                continue
            if isinstance(op, Affine) and op.layer and op.via is None and origin(op.source) is node:
                layers.append((reader, op))
                continue
            passage = self._passage(reader)
            if isinstance(op, Concat):
                across = self._beside(node, reader, op, at, joined)
            elif passage is None or passage.source is not node:
                first = first or Refusal(Code.DISTRIBUTE, f"{named(reader)}, behind it, is no layer to take it")
                continue
            else:
                across = self._across(reader, passage, at, joined)
                self.keeps_rank &= passage.keeps_rank
            if isinstance(across, Refusal):
                first = first or across
                self._on(reader, at.lost(), None)  # whether a layer stands there at all
                continue
            self.tree.append(reader)
            first = self._on(reader, *across) or first
        if layers:
            first = self._taken(node, layers, at, joined) or first
        return first

    def _beside(
        self, node: fx.Node, reader: fx.Node, op: Concat, at: At, joined: bool | None
    ) -> tuple[At, bool | None] | Refusal:
        """On to a concatenation, whose other parts are scaled by one and shifted by zero."""
        if at.axes is None or op.axes != at.axes:
            return Refusal(Code.LAYOUT, f"{named(reader)} joins along another axis than its channels")
        parts = [origin(s) for s in op.sources]
        known = self._widths(reader, op)
        if at.count is None or known is None or parts.count(node) > 1 or known[parts.index(node)] != at.count:
            return Refusal(
                Code.CHANNELS, "how many channels the parts beside it have is not known; give example_inputs"
            )
        self.beside |= {p: w for p, w in zip(parts, known, strict=True) if p is not node}
        start, whole = sum(known[: parts.index(node)]), sum(known)
        rows = list(range(start, start + at.count))
        return at.then(over_slice(whole, rows), whole, at.shifted), joined

    def _widths(self, node: fx.Node, op: Concat) -> list[int] | None:
        """Channels of each part of a concatenation; those of one that says nothing are what is left for its reader."""
        found = [self._width(s, op.axes) for s in op.sources]
        known = [w for w in found if w is not None]
        unknown = [s for s, w in zip(op.sources, found, strict=True) if w is None]
        expected = self.found.facts.channels_expected(node)
        if not unknown:
            return known
        left = 0 if expected is None else expected - sum(known)
        if len(set(unknown)) > 1 or left <= 0 or left % len(unknown):
            return None
        return [left // len(unknown) if w is None else w for w in found]

    def _across(self, node: fx.Node, passage: Passage, at: At, joined: bool | None) -> tuple[At, bool | None] | Refusal:
        blocked = self._blocked(node, passage, at)
        if blocked is not None or at.axes is None:
            return blocked or (at, joined)
        if at.axes not in passage.moves:
            return Refusal(Code.LAYOUT, f"{named(node)} does not keep its channels one axis")
        moved = replace(at, axes=passage.moves[at.axes])
        if passage.blocks != 1:
            return Refusal(Code.DISTRIBUTE, f"{named(node)} makes one channel of several, each with its own scale")
        if at.axes not in passage.joined:
            return moved, joined
        if self.op.paradigm != "bn" and self.found.facts.stated_rank(self.op.source) is None:
            sentence = "of how many axes it has, of which some are joined behind it, the example inputs alone tell"
            return Refusal(Code.RANK_UNKNOWN, sentence)
        if joined is not None:
            return Refusal(Code.LAYOUT, f"{named(node)} joins axes once more")
        return moved, passage.joined[at.axes]

    def _taken(
        self, node: fx.Node, layers: list[tuple[fx.Node, Affine]], at: At, joined: bool | None
    ) -> Refusal | None:
        """Layers that read a value, and take the share behind it."""
        self.any_layer = True
        widths = {op.shape.in_channels for _, op in layers}
        width = widths.pop()
        if widths or (at.axes is not None and any(len(op.shape.axes or ()) != at.axes for _, op in layers)):
            return Refusal(Code.LAYOUT, f"{named(layers[0][0])}, behind it, reads another axis than its channels")
        if at.count is not None:
            if width is None or width % at.count or (joined is None and width != at.count):
                return Refusal(Code.CHANNELS, f"{named(layers[0][0])} reads {width} channels, and it has {at.count}")
            if joined is not None:
                at = at.then(over_blocks(width // at.count, joined), width, at.shifted)
        self.parts.append(Part(node, at))
        self.reading += [reader for reader, _ in layers]
        return None

    def adopted(self, made: Spread) -> None:
        """Shares of other norms that stand behind the same values stand behind these now."""
        for leaf, share in zip(made.leaves, made.shares, strict=True):
            for spread in (s for s in self.active if s.ahead and leaf in s.leaves):
                spread.stand_behind(leaf, share)


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


def is_slice(op: Op | None) -> bool:
    """Whether an operation takes some of the channels and leaves everything else as it is."""
    if not isinstance(op, Affine) or op.paradigm != "slice" or op.shape.channels is None:
        return False
    return op.shape.is_pointwise and op.shape.channels.width == 1


def _on_channels(op: Affine, sliced: Affine) -> Affine:
    """One number for all channels as one for each channel of a slice."""
    count, axes = sliced.shape.out_channels, len(sliced.shape.axes or ())
    assert count is not None

    def on(kernel: Kernel) -> Kernel:
        return kernel.with_axes(axes).with_channels(count)

    return replace(op, shape=on(op.shape), load=lambda: on(op.load()))


def _rows(op: Op) -> set[int]:
    """The channels that a slice takes."""
    assert isinstance(op, Affine) and op.shape.channels is not None
    return set(op.shape.channels.lo.tolist())


def _is_number(kernel: Kernel) -> bool:
    return kernel.channels is None and kernel.is_pointwise and not kernel.biased
