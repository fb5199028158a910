"""Ahead of a norm: through passages and concatenations to the layers behind it that may take it."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from reptool.ir.ops import Affine, Concat
from reptool.passages import Passage
from reptool.passages.spread import Spread, origin, over_blocks, over_slice
from reptool.plan.spreading.way import At, Part, Way
from reptool.pysource.places import listed, named
from reptool.refusal import Code, Refusal


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
