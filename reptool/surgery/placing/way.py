"""The layers of a region, and the way through it: from its root to the layer that is replaced, and on to its value."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from reptool.ir.ops import Affine, Op
from reptool.plan.select import Region
from reptool.refusal import Code, Refusal
from reptool.surgery.traced import Traced


def carriers(traced: Traced, ops: Iterable[fx.Node]) -> list[fx.Node]:
    """The region's layers; where there are none (a norm or a pooling by itself) its modules."""
    layers = [n for n in ops if is_layer(traced.found.ops[n])]
    alone = [n for n in ops if n.op == "call_module" and traced.found.ops[n].owners]
    return layers or [n for n in alone if n not in traced.found.shares]


def way_of(traced: Traced, region: Region, carrier: fx.Node) -> list[fx.Node]:
    """Absorbed operations on the way root -> carrier -> value."""
    ops = region.form.ops
    above: dict[fx.Node, fx.Node] = {}
    queue = [region.value]
    while queue:
        node = queue.pop()
        if node is carrier:
            break
        for source in traced.found.ops[node].sources:
            if source in ops and source not in above:
                above[source] = node
                queue.append(source)
    way, node = [], carrier
    while node is not region.value:
        node = above[node]
        way.append(node)
    node = carrier
    while True:
        node = next((s for s in traced.found.ops[node].sources if s in ops), region.root)
        if node is region.root:
            return way
        way.append(node)


def written_between(traced: Traced, region: Region, way: list[fx.Node], carrier: fx.Node) -> Refusal | None:
    """Whether something is written in place that the region reads, or inside of it."""
    position = traced.reads.position
    readers = [position[n] for n in region.form.ops if region.root in traced.found.ops[n].sources]
    first = min(readers, default=0)
    if traced.reads.written_between(region.root, first, position[carrier]):
        return Refusal(Code.MUTATED, "the value read is written in place before the layer runs", (region.root.name,))
    for value in region.form.reads[1:]:
        first = min((position[n] for n in region.form.ops if value in traced.found.ops[n].sources), default=0)
        if traced.reads.written_between(value, first, position[carrier]):
            return Refusal(Code.MUTATED, "a value read is written in place before the layer runs", (value.name,))
    for node in region.form.ops:
        written = traced.reads.mutates.get(node)
        if written is None:
            continue
        storage = traced.reads.storage.get(written, written)
        if storage is traced.reads.storage.get(region.root, region.root):
            return Refusal(Code.MUTATED, "the value the region reads is written in place inside of it", (node.name,))
        made = storage if storage in region.form.ops else None
        if made is None:
            return Refusal(
                Code.MUTATED, "a value from outside the region is written in place inside of it", (node.name,)
            )
    return None


def is_layer(op: Op) -> bool:
    """Whether an operation is a layer with a weight."""
    return isinstance(op, Affine) and op.layer
