"""Distributing: which norms behind sums, concatenations and slices are given to the parts, all of them or none.

What no region has taken is looked at here: from a norm or scale back through sums, concatenations, slices and
identities to the parts. Where each part ends in a layer and is read nowhere else, a `Spread` is made and everything is
planned again; where a share then finds no layer, the spread is given up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Affine, Concat, Op, Pieces, Sum
from reptool.ir.trace import Event, Trace, all_events
from reptool.plan.candidates import Analysis
from reptool.plan.spread import Split, Spread, add_share, over_concat, over_slice, over_sum
from reptool.pysource.places import asked, listed, named
from reptool.refusal import Code, Refusal
from reptool.surgery import Site, Surgeon, Surgery

PARADIGMS = ("bn", "scale")


@dataclass
class Spreads:
    """The norms of one trace that are given to parts.

    Args:
        trace: what was seen.
        active: those that are tried now, each behind those it builds on.
        refused: norms that stay, and why.
    """

    trace: Trace
    active: list[Spread] = field(default_factory=list)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)
    _tried: set[fx.Node] = field(default_factory=set)
    _graph: fx.Graph = field(default_factory=fx.Graph)

    def settled(self, surgeon: Surgeon, surgery: Surgery, refusals: dict[fx.Node, Refusal]) -> bool:
        """Give up what found no place and take up what may find one; whether nothing changed by that."""
        return not self._give_up(surgeon, surgery, refusals) and not self._take_up(surgeon, surgery)

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
                own = refusals.get(lost) or surgeon.found.refused.get(lost)
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
    def _take_up(self, surgeon: Surgeon, surgery: Surgery) -> bool:
        found = surgeon.found
        fused = {n for s in surgery.sites if _layered(found, s.region.form.ops) for n in s.region.form.ops}
        values = {s.region.value for s in surgery.sites}
        more: list[Spread] = []
        for node, op in list(found.ops.items()):
            if not isinstance(op, Affine) or op.paradigm not in PARADIGMS:
                continue
            if node in fused or node in self._tried or node in found.shares:
                continue
            if node not in found.wanted and all(map(metadata_read, found.reads.readers.get(node, ()))):
                continue  # nobody has any use for what it computes
            walk = _Walk(found, self, values, node, op)
            if not walk.starts():
                continue
            why = walk.run() or self._asked(walk) or _repeated(walk, surgeon)
            if why is None and any(p.leaf in s.leaves for s in more for p in walk.parts):
                continue  # two slices of one value: the next round sees the first one's share
            if why is None:
                self._tried.add(node)
                self.refused.pop(node, None)  # it may have waited for a norm in front of it
                more.append(walk.made(self._graph))
            elif walk.any_layer:
                self.refused[node] = why.at(node.name)
        self.active += more
        return bool(more)

    def _asked(self, walk: _Walk) -> Refusal | None:
        """Whether the code around asks something: with another answer the parts may not meet in this norm."""
        inner = [*walk.tree, *(p.leaf for p in walk.parts)]
        chains = [list(n.meta["event"].ancestors()) for n in (walk.norm, *inner)]
        common = set(chains[0]).intersection(*chains[1:])
        lowest = next((e for e in chains[0] if e in common), None)
        chains.append([e for n in inner for e in n.meta.get("through", ())])
        for event in (e for chain in chains for e in chain if e is lowest or e not in common):
            for question in (*event.questions, *event.minor):
                return Refusal(
                    Code.SPECIALIZED,
                    f"{event.function} asks for {asked(question)}; with another answer it may run other code",
                )
        return None


@dataclass
class _Part:
    leaf: fx.Node
    steps: list[Split]
    shifted: bool


class _Walk:
    """The way back from one norm to the parts it may be given to."""

    def __init__(self, found: Analysis, spreads: Spreads, values: set[fx.Node], norm: fx.Node, op: Affine) -> None:
        self.found, self.values, self.norm, self.op = found, values, norm, op
        self.through = {s.norm: s for s in spreads.active}
        self.kept = {*spreads.trace.escaped, *spreads.trace.outputs}
        self.tree: list[fx.Node] = []
        self.parts: list[_Part] = []
        self.any_layer = False

    def starts(self) -> bool:
        """Whether a sum, concatenation or slice that stands as it is lies in front of the norm."""
        node = self.op.source
        while True:
            if node in self.values:
                return False
            op = self.found.ops.get(node)
            if node in self.through:
                node = self.through[node].source
            elif isinstance(op, Affine) and op.paradigm == "identity":
                node = op.source
            else:
                if isinstance(op, Affine) and _is_slice(op) and self.op.shape.channels is None:
                    self.op = _on_channels(self.op, op)
                return isinstance(op, (Sum, Concat)) or _is_slice(op)

    def run(self) -> Refusal | None:
        """Collect tree and parts; the first reason why the norm has to stay."""
        first = self._back(self.op.source, self.norm, [], True)
        shape = self.op.shape
        if not shape.is_pointwise or not shape.is_channelwise:
            return first or Refusal(Code.DISTRIBUTE, "it is no map of each channel by itself")
        if self.norm in self.found.reads.mutates:
            return first or Refusal(Code.MUTATED, "it writes into the value it reads")
        return first

    def made(self, graph: fx.Graph) -> Spread:
        """The spread of what was collected."""
        joined = (op.axes for n in self.tree if isinstance(op := self.found.ops.get(n), Concat))
        axes = next(joined, 2) if self.op.shape.axes is None else len(self.op.shape.axes)
        spread = Spread(
            self.norm,
            self.op,
            self.op.source,
            frozenset(self.tree),
            axes,
            [self._width(p.leaf, axes) for p in self.parts],
        )
        readers = self.found.reads.readers
        for part in self.parts:
            add_share(spread, graph, part.leaf, part.steps, part.shifted)
            readers[spread.shares[-1]] = list(readers.get(part.leaf, ()))
        return spread

    def _back(self, node: fx.Node, reader: fx.Node | None, steps: list[Split], shifted: bool) -> Refusal | None:
        op = self.found.ops.get(node)
        first: Refusal | None = None
        if reader is not None and not self._alone(node, reader):
            others = listed(n for n in self._readers(node) if n is not reader)
            first = Refusal(Code.READ_ELSEWHERE, f"{named(node)}, in front of it, is also read by {others}")
        if node in self.through:
            self.tree.append(node)
            return self._back(self.through[node].source, node, steps, shifted) or first
        if node not in self.values:
            if isinstance(op, Affine) and op.paradigm == "identity" and not op.layer:
                self.tree.append(node)
                return self._back(op.source, node, steps, shifted) or first
            if isinstance(op, Affine) and _is_slice(op):
                cut = self._slice(node, op)
                first = first or (cut if isinstance(cut, Refusal) else None)
                return (
                    self._back(op.source, None, steps if isinstance(cut, Refusal) else [*steps, cut], shifted) or first
                )
            if isinstance(op, (Sum, Concat)):
                self.tree.append(node)
                ways = self._sum(op, shifted) if isinstance(op, Sum) else self._concat(op, shifted)
                if isinstance(ways, Refusal):
                    first, ways = first or ways, [(None, False)] * len(op.sources)
                for source, (step, moved) in zip(op.sources, ways, strict=True):
                    first = self._back(source, node, [*steps, *([] if step is None else [step])], moved) or first
                return first
        return self._leaf(node, steps, shifted) or first

    def _leaf(self, node: fx.Node, steps: list[Split], shifted: bool) -> Refusal | None:
        forms = self.found.forms.get(node, {})
        layered = (
            node in self.values
            or node in self.found.shares
            or any(_layered(self.found, (node, *f.ops)) for f in forms.values())
        )
        self.any_layer |= layered
        twice = any(p.leaf is node for p in self.parts)
        self.parts.append(_Part(node, steps, shifted))
        if not layered:
            return Refusal(Code.DISTRIBUTE, f"{named(node)}, a part of what it reads, ends in no layer to take it")
        return Refusal(Code.READ_ELSEWHERE, f"{named(node)} is a part of it twice") if twice else None

    def _sum(self, op: Sum, shifted: bool) -> list[tuple[Split | None, bool]] | Refusal:
        if any(m is not None and not _is_number(m) for m in op.maps):
            return Refusal(Code.DISTRIBUTE, "a summand goes through a map of its own")
        at = next((i for i, m in enumerate(op.maps) if m is None), None)
        if at is None:
            return Refusal(Code.DISTRIBUTE, "every summand has a factor of its own")
        return [(over_sum(len(op.sources), i, at), shifted and i == at) for i in range(len(op.sources))]

    def _concat(self, op: Concat, shifted: bool) -> list[tuple[Split | None, bool]] | Refusal:
        count, axes = self.op.shape.out_channels, self.op.shape.axes
        if count is None:
            return [(None, shifted)] * len(op.sources)  # one number for all channels
        if axes is None or op.axes != len(axes):
            return Refusal(Code.LAYOUT, "the parts lie along another axis than its channels")
        widths = [self._width(s, op.axes) for s in op.sources]
        known = [w for w in widths if w is not None]
        if len(known) < len(widths):
            return Refusal(Code.CHANNELS, "how many channels its parts have is not known; give example_inputs")
        if sum(known) != count:
            return Refusal(Code.CHANNELS, f"parts of {known} channels do not add up to the {count} it has")
        return [(over_concat(known, i), shifted) for i in range(len(known))]

    def _slice(self, node: fx.Node, op: Affine) -> Split | Refusal:
        """The step across a slice of channels that nothing but the norm reads, of a value of which all read slices."""
        taken, count = _rows(op), self.op.shape.out_channels
        direct = self._readers(op.source)
        cuts = [r for r in direct if isinstance(self.found.ops.get(r), Pieces)]
        slices = [r for r in direct if r not in cuts] + [r for c in cuts for r in self._readers(c)]
        self.tree += [*cuts, *slices]
        whole = [n for n in slices if not _is_slice(self.found.ops.get(n))]
        if self.kept & {op.source, *cuts} or whole:
            sentence = f"{named(op.source)}, of which it reads a slice, is also read by {listed(whole)}"
            return Refusal(Code.READ_ELSEWHERE, sentence)
        clash = [n for n in slices if n is not node and taken & _rows(self.found.ops[n])]
        if clash:
            return Refusal(
                Code.READ_ELSEWHERE, f"channels of {named(node)}, in front of it, are also read by {listed(clash)}"
            )
        channels, axes = op.shape.channels, self.op.shape.axes
        assert channels is not None
        if len(taken) != channels.out_channels:
            return Refusal(Code.DISTRIBUTE, f"{named(node)}, in front of it, holds a channel twice")
        if count is None or axes is None:
            return Refusal(Code.CHANNELS, "it is one number for all channels, of which it reads some")
        if len(axes) != len(op.shape.axes or ()):
            return Refusal(Code.LAYOUT, "the slice lies along another axis than its channels")
        return over_slice(channels.in_channels, channels.lo.tolist())

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        return [r for r in self.found.reads.readers.get(node, ()) if not metadata_read(r)]

    def _width(self, node: fx.Node, axes: int) -> int | None:
        forms = self.found.forms.get(node, {}).values()
        written = {f.shape.out_channels for f in forms if f.shape.out_channels is not None}
        return written.pop() if len(written) == 1 else self.found.facts.channels(node, axes)

    def _alone(self, node: fx.Node, reader: fx.Node) -> bool:
        return node not in self.kept and self._readers(node) == [reader]


def _layered(found: Analysis, nodes: Iterable[fx.Node]) -> bool:
    return any(isinstance(op, Affine) and op.layer for op in map(found.ops.get, nodes))


def _is_slice(op: Op | None) -> bool:
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


def _repeated(walk: _Walk, surgeon: Surgeon) -> Refusal | None:
    """Whether the code in which the norm stands runs more than once."""
    calls: list[tuple[str, str]] = [(e.path, e.method) for e in all_events(surgeon.trace.top)]
    event: Event | None = walk.norm.meta["event"]
    while event is not None:
        if calls.count((event.path, event.method)) > 1:
            return Refusal(Code.SHARED, f"{event.function}, in which it stands, is called twice")
        event = event.parent
    return None


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
