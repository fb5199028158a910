"""Norms that keep running and give their scale and shift to all that read them, or to nobody.

Behind each such norm a node of its own stands for its scale and shift. It is planned, owned, priced and verified like a
scale that the code would compute there. Where every reader takes it into its layer, the norm is left without; where
one cannot, no reader takes anything and the plan is made again without that node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import fx

from reptool.lift.own_affine import Bare, own_affine
from reptool.lift.reading import Context
from reptool.ops import Affine, Concat, Fill, Op, Pieces, Reduced, Stack, Sum, View
from reptool.refusal import Code, Refusal
from reptool.spread import Share


@dataclass(eq=False)
class Behind:
    """The scale and shift of one norm.

    Args:
        norm: the node that computes both.
        node: the node that stands for the scale and shift alone.
        bare: what is left of the norm.
    """

    norm: fx.Node
    node: fx.Node
    bare: Bare


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

    def behind(self, node: fx.Node, ctx: Context) -> Behind | None:
        """What stands for the scale and shift of a norm; None for all other nodes, and where they stay."""
        if node in self.refused:
            return None
        if node not in self.active:
            found = own_affine(node, ctx)
            if isinstance(found, Refusal):
                self.refused[node] = found
            if found is None or isinstance(found, Refusal):
                return None
            self.active[node] = Behind(node, self._node(node, found.op), found)
        return self.active[node]

    def _node(self, norm: fx.Node, op: Affine) -> fx.Node:
        node = self._graph.create_node("call_function", Share(op.load).forward, (norm,), name=f"{norm.name}_affine")
        node.meta.update(event=norm.meta["event"], const=False, kind="tensor", share=True, share_of=norm, bare=True)
        return node

    def keep(self, wanted: set[fx.Node], why: Callable[[fx.Node], Refusal]) -> bool:
        """Leave with their norms those that are still computed; whether there was one."""
        kept = [b for b in self.active.values() if b.node in wanted]
        reasons = [why(b.node) for b in kept]
        for behind, reason in zip(kept, reasons, strict=True):
            del self.active[behind.norm]
            self.refused[behind.norm] = reason
        return bool(kept)

    def left(self) -> dict[fx.Node, Refusal]:
        """Each norm that keeps its scale and shift, with the reason."""
        sentence = "it normalizes by the values that it is given, at every call; its scale and shift stay in it: "
        return {
            n: Refusal(Code.NO_STATISTICS, sentence + r.sentence, (n.name,), lines=()) for n, r in self.refused.items()
        }


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
