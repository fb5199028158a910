"""Norms that keep running and give their scale and shift to all that read them, or to nobody.

Behind each such norm a node of its own stands for its scale and shift. It is planned, owned, priced and verified like a
scale that the code would compute there. Where every reader takes it into its layer, the norm is left without; where
one cannot, no reader takes anything and the plan is made again without that node.

A view, and a piece of the channels, has nothing to take: there the node goes to the other side, since
``view(gamma * n + beta) = gamma' * view(n) + beta'`` with the constants arranged or cut as the view or the piece says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from torch import fx

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.ir.ops import Affine, Concat, Fill, Op, Pieces, Stack, Sum, View
from reptool.lift.reading import Context
from reptool.passages.norm_affine import Bare, own_affine
from reptool.passages.spread import Share
from reptool.refusal import Code, Refusal


@dataclass(eq=False)
class Behind:
    """The scale and shift of one norm.

    Args:
        norm: the node that computes both.
        bare: what is left of the norm.
        nodes: by the value behind which they stand, the nodes for the scale and shift alone.
        ops: what these nodes are.
        passed: views and pieces that read what is not scaled yet.
    """

    norm: fx.Node
    bare: Bare
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    ops: dict[fx.Node, Affine] = field(default_factory=dict)
    passed: set[fx.Node] = field(default_factory=set)

    def stand(self, at: fx.Node, op: Affine, graph: fx.Graph) -> None:
        """Let a node stand behind a value."""
        name = f"{self.norm.name}_affine" if at is self.norm else f"{self.norm.name}_affine_{at.name}"
        node = graph.create_node("call_function", Share(op.load).forward, (at,), name=name)
        node.meta.update(event=self.norm.meta["event"], const=False, kind="tensor", share=True)
        node.meta.update(share_of=self.norm, passed=self.passed)
        self.nodes[at], self.ops[node] = node, op

    def go_on(self, at: fx.Node, over: list[tuple[list[fx.Node], Affine]], stays: bool, graph: fx.Graph) -> None:
        """Go from one value to the other side of those that read it.

        Args:
            at: the value.
            over: what is passed, its end last, and the scale and shift there.
            stays: whether somebody else reads them where they are.
            graph: for the new nodes.
        """
        if not stays:
            del self.ops[self.nodes.pop(at)]
        for passed, op in over:
            self.passed.update(passed)
            self.stand(passed[-1], op, graph)


@dataclass
class OwnAffines:
    """The norms of one trace whose scale and shift may go into what reads them.

    Args:
        active: by the norm, those that are tried now.
        refused: norms that keep theirs, and why.
    """

    active: dict[fx.Node, Behind] = field(default_factory=dict)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)
    _graph: fx.Graph = field(default_factory=fx.Graph)

    def at(self, node: fx.Node, op: Op | None, ctx: Context) -> Iterator[Behind]:
        """The norms whose scale and shift stand right behind a value."""
        if op is None and node not in self.active and node not in self.refused:
            self._begin(node, ctx)
        yield from [b for b in self.active.values() if node in b.nodes]

    def _begin(self, node: fx.Node, ctx: Context) -> None:
        found = own_affine(node, ctx)
        if isinstance(found, Refusal):
            self.refused[node] = found
        elif found is not None:
            self.active[node] = Behind(node, found)
            self.active[node].stand(node, found.op, self._graph)

    def go_on(self, ops: dict[fx.Node, Op], wanted: set[fx.Node]) -> bool:
        """Bring scales and shifts past views and pieces; whether there was one.

        Args:
            ops: what the nodes are.
            wanted: values that are needed as they are.
        """
        readers: dict[fx.Node, list[fx.Node]] = {}
        for node, op in ops.items():
            for source in op.sources:
                readers.setdefault(source, []).append(node)
        moved = False
        for behind in self.active.values():
            for at, node in list(behind.nodes.items()):
                if node in wanted:
                    continue
                found = {r: _past(r, behind.ops[node], ops, readers, wanted) for r in readers.get(node, ())}
                over = [end for ends in found.values() for end in ends or ()]
                if over:
                    behind.go_on(at, over, None in found.values(), self._graph)
                    moved = True
        return moved

    def keep(self, wanted: set[fx.Node], why: Callable[[fx.Node], Refusal]) -> bool:
        """Leave with their norms those that are still computed; whether there was one."""
        kept = [(b, n) for b in self.active.values() for n in [*wanted.intersection(b.ops)][:1]]
        reasons = [why(n) for _, n in kept]
        for (behind, _), reason in zip(kept, reasons, strict=True):
            self.leave(behind.norm, reason)
        return bool(kept)

    def leave(self, norm: fx.Node, why: Refusal) -> None:
        """Leave with a norm what it has."""
        del self.active[norm]
        self.refused[norm] = why

    def left(self) -> dict[fx.Node, Refusal]:
        """Each norm that keeps its scale and shift, with the reason."""
        sentence = "it normalizes by the values that it is given, at every call; its scale and shift stay in it: "
        return {n: Refusal(Code.NO_STATISTICS, sentence + r.sentence, (n.name,)) for n, r in self.refused.items()}


def _past(
    node: fx.Node, scale: Affine, ops: dict[fx.Node, Op], readers: dict[fx.Node, list[fx.Node]], wanted: set[fx.Node]
) -> list[tuple[list[fx.Node], Affine]] | None:
    """The ends of what a reader of a scale hands on, and the scale behind each; None where it takes the scale."""
    op = ops[node]
    if isinstance(op, Pieces):
        pieces = readers.get(node, [])
        ends = [(n, _behind(ops[n], scale, n)) for n in pieces]
        if node in wanted or not ends or any(end is None for _, end in ends):
            return None
        return [([node, n], end) for n, end in ends if end is not None]
    end = _behind(op, scale, node)
    return None if end is None else [([node], end)]


def _behind(op: Op, scale: Affine, node: fx.Node) -> Affine | None:
    """The scale behind a view or a piece of the channels, instead of in front of it; None for all others."""
    shape = scale.shape
    if isinstance(op, View):
        count = len(shape.axes or ())
        if shape.channels is None:
            return replace(scale, source=node)
        return _made(scale, node, lambda k: _along(k, op.moves[count])) if count in op.moves else None
    if not isinstance(op, Affine) or op.owners or op.shape.channels is None or shape.channels is None:
        return None
    cut = op.shape
    if op.paradigm != "slice" or not cut.is_pointwise or cut.channels is None or cut.channels.width != 1:
        return None
    if len(cut.axes or ()) != len(shape.axes or ()) or cut.channels.in_channels != shape.channels.out_channels:
        return None
    rows = cut.channels.lo.tolist()
    return _made(scale, node, lambda k: _rows(k, rows))


def _made(scale: Affine, node: fx.Node, change: Callable[[Kernel], Kernel]) -> Affine:
    return replace(scale, source=node, shape=change(scale.shape), load=lambda: change(scale.load()))


def _along(kernel: Kernel, axes: int) -> Kernel:
    """One number for each channel, with so many axes behind the channels."""
    weight = None if kernel.weight is None else kernel.weight.reshape(-1, 1, *[1] * axes)
    return replace(kernel, axes=(Axis(),) * axes, weight=weight)


def _rows(kernel: Kernel, rows: list[int]) -> Kernel:
    """The numbers of some channels."""
    channels = Channels.grouped(len(rows), len(rows), len(rows))
    weight, bias = (None if t is None else t[rows] for t in (kernel.weight, kernel.bias))
    return replace(kernel, channels=channels, weight=weight, bias=bias)


def rerouted(op: Op, instead: dict[fx.Node, fx.Node]) -> Op:
    """What an operation computes from other nodes in the place of some that it reads."""
    if isinstance(op, Affine):
        via = op.via if op.via is None else instead.get(op.via, op.via)
        return replace(op, source=instead.get(op.source, op.source), via=via)
    if isinstance(op, (Sum, Concat, Stack)):
        return replace(op, sources=[instead.get(s, s) for s in op.sources])
    if isinstance(op, (View, Pieces)):
        return replace(op, source=instead.get(op.source, op.source))
    whole = None if op.whole is None else rerouted(op.whole, instead)
    if isinstance(op, Fill):
        assert whole is None or isinstance(whole, Affine)
        return replace(op, source=instead.get(op.source, op.source), whole=whole)
    assert isinstance(whole, Sum)
    return replace(op, source=instead.get(op.source, op.source), whole=whole)
