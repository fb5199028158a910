"""Spreads: a norm or scale given to every part of what stands in front of it, or to every layer behind it.

In front of it stand sums and concatenations of different values, slices, and passages (see `passages`); behind it
nothing but passages up to the layers. A *share* is a node of its own right behind each part, or right behind the value
that a layer reads: that part's share of the norm, which is planned, owned, priced and verified like a norm that stands
there. The norm itself is then nothing but a read of what it read. A spread holds all or nothing: where one share finds
no layer, no part is changed. The formulas stand in `fusions.distribute`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.fusions.distribute import (
    distribute_over_blocks,
    distribute_over_concat,
    distribute_over_slice,
    distribute_over_sum,
)
from reptool.ir.ops import Affine, Concat, Op, Pieces, Sum, View

Split = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


@dataclass(eq=False)
class Spread:
    """One norm that is given to the parts behind which it stands.

    Args:
        norm: the node that goes away.
        op: what it is.
        source: the sum, concatenation or slice it reads.
        tree: the nodes between the parts and the norm, and the other slices of what is sliced there.
        reading: those that read the shares in place of the parts: of the tree, or the layers behind it.
        ahead: whether the shares stand behind the norm.
        axes: axes behind the channels of each part.
        widths: channels of each part.
        leaves: the parts.
        shares: for each part the node of its share.
        ops: what the shares are.
        alike: whether all shares are the same, as the parts that one layer computes need them.
        beside: values of other parts of a concatenation on the way, with their channels.
    """

    norm: fx.Node
    op: Affine
    source: fx.Node
    tree: frozenset[fx.Node]
    reading: frozenset[fx.Node]
    ahead: bool = False
    axes: list[int] = field(default_factory=list)
    widths: list[int | None] = field(default_factory=list)
    leaves: list[fx.Node] = field(default_factory=list)
    shares: list[fx.Node] = field(default_factory=list)
    ops: list[Affine] = field(default_factory=list)
    alike: bool = False
    beside: dict[fx.Node, int] = field(default_factory=dict)

    def at(self, share: fx.Node) -> int:
        """Which of the shares this is: no two are the same, where not all are."""
        return 0 if self.alike else self.shares.index(share)

    def parts(self) -> list[fx.Node]:
        """The leaves in the graph that was captured, where some of them are shares of another spread."""
        return [origin(leaf) for leaf in self.leaves]

    def stand_behind(self, leaf: fx.Node, share: fx.Node) -> None:
        """Put the share of a part behind a share of another norm of that part."""
        at = self.leaves.index(leaf)
        self.leaves[at], self.shares[at].args = share, (share,)
        self.ops[at] = replace(self.ops[at], source=share)

    def rerouted(self, node: fx.Node, op: Op) -> Op:
        """What a node computes from the shares instead of the parts."""
        if node not in self.reading:
            return op
        if isinstance(op, (Sum, Concat)):
            return replace(op, sources=[self.instead(node, s) for s in op.sources])
        assert isinstance(op, (Affine, Pieces, View))
        return replace(op, source=self.instead(node, op.source))

    def instead(self, node: fx.Node, value: fx.Node) -> fx.Node:
        """What a node reads in place of a value."""
        if node not in self.reading or value not in self.leaves:
            return value
        return self.shares[self.leaves.index(value)]


def origin(node: fx.Node) -> fx.Node:
    """The value behind which a share stands, maybe with others between them; any other node itself."""
    while "share" in node.meta:
        node = node.all_input_nodes[0]
    return node


class Share(nn.Module):
    """A share of a norm as a module, for verification."""

    def __init__(self, load: Callable[[], Kernel]) -> None:
        super().__init__()
        self.load = load

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift per channel, in the order of axes that the norm has."""
        kernel = self.load()
        assert kernel.weight is not None
        axes = len(kernel.axes or ())
        scale, shift = kernel.weight.reshape(-1, *[1] * axes), kernel.bias
        return x * scale if shift is None else x * scale + shift.reshape(-1, *[1] * axes)


def over_sum(parts: int, index: int, at: int) -> Split:
    """The share of summand `index`, where summand `at` gets the shift."""
    return lambda scale, shift: distribute_over_sum(scale, shift, parts, at)[index]


def over_equals(parts: int, count: int) -> Split:
    """The share of `count` of so many summands that all get the same."""

    def split(scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        scale, each = distribute_over_sum(scale, shift, parts, None)[0]
        return scale, None if each is None else each * count

    return split


def over_concat(widths: list[int], index: int) -> Split:
    """The share of part `index`."""
    return lambda scale, shift: distribute_over_concat(scale, shift, widths)[index]


def over_slice(channels: int, rows: list[int]) -> Split:
    """The share of a value of so many channels, of which these are read."""
    return lambda scale, shift: distribute_over_slice(scale, shift, channels, rows)


def over_blocks(times: int, tiled: bool = False) -> Split:
    """The share of a value of so many channels for each of the norm's, side by side or the whole as often."""
    return lambda scale, shift: distribute_over_blocks(scale, shift, times, tiled)


def add_share(
    spread: Spread, graph: fx.Graph, leaf: fx.Node, steps: list[Split], shifted: bool, axes: int | None = None
) -> None:
    """Make the node and the op of one part's share.

    Args:
        spread: the norm.
        graph: holds the node.
        leaf: the part.
        steps: from the norm's numbers to those of the share.
        shifted: whether it gets the shift.
        axes: axes behind the channels; None for a number, which fits any.
    """
    norm, op = spread.norm, spread.op
    along = None if axes is None else (Axis(),) * axes

    def load() -> Kernel:
        whole = op.load()
        assert whole.weight is not None
        scale, shift, terms = whole.weight.reshape(-1), whole.bias, whole.bias_terms
        for step in steps:
            terms = None if terms is None else step(scale, terms)[1]
            scale, shift = step(scale, shift)
        count = len(scale)
        channels = None if whole.channels is None else Channels.grouped(count, count, count)
        weight = scale.reshape(count, 1, *[1] * len(along or ()))
        return Kernel(channels, along, weight, shift, shift is not None, terms)

    biased = op.shape.biased and shifted
    count = _width(op, steps)
    channels = None if count is None else Channels.grouped(count, count, count)
    shape = Kernel(channels, along, biased=biased)
    if norm.op == "call_module":
        node = graph.create_node("call_module", str(norm.target), (leaf,))
        node.meta["module"] = Share(load)
    else:
        node = graph.create_node("call_function", Share(load).forward, (leaf,), name=f"{norm.name}_share")
    node.meta.update(event=norm.meta["event"], const=False, kind="tensor", share=True, share_of=norm)
    spread.leaves.append(leaf)
    spread.shares.append(node)
    spread.ops.append(replace(op, source=leaf, shape=shape, load=load))


def _width(op: Affine, steps: list[Split]) -> int | None:
    """Channels of a share, found by splitting as many empty numbers."""
    count = op.shape.out_channels
    if count is None:
        return None
    scale = torch.empty(count, dtype=torch.float64)
    for step in steps:
        scale, _ = step(scale, None)
    return len(scale)
