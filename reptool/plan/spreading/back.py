"""Back from a norm: the parts of sums, concatenations and slices in front of it that may take it."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.ops import Affine, Concat, Op, Pieces, Sum
from reptool.passages import Passage
from reptool.passages.spread import Spread, over_blocks, over_concat, over_equals, over_slice, over_sum
from reptool.plan.spreading.way import At, Part, Way, layered
from reptool.pysource.places import listed, named
from reptool.refusal import Code, Refusal


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
