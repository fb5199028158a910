"""What stands side by side at several resolutions: a concatenation of values of which some are upsampled.

Nearest upsampling by whole factors. Where it is told what size to give, by the factor that the example inputs show,
which is checked at every call, or that the sizes of a graph have at every call. An upsampling by itself that is told a
size is one value side by side with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from reptool.algebra.side_by_side import Part, parts_of
from reptool.ir.aliasing import Reads
from reptool.ir.ops import Affine, Concat, Op
from reptool.lift.layout.resampling import repeats, told_size
from reptool.plan.inference.facts import Facts


@dataclass(frozen=True, eq=False)
class Joined:
    """Values side by side.

    Args:
        node: that gives them at one resolution: the concatenation, or the upsampling of one value.
        values: before they are upsampled.
        ups: the upsampling of each; None for those that are not.
        factors: by which each is upsampled.
        parts: those of one resolution together.
    """

    node: fx.Node
    values: tuple[fx.Node, ...]
    ups: tuple[fx.Node | None, ...]
    factors: tuple[tuple[int, ...], ...]
    parts: tuple[Part, ...]

    @property
    def root(self) -> fx.Node:
        """The first value that is upsampled."""
        return next(v for v, up in zip(self.values, self.ups, strict=True) if up is not None)

    @property
    def ops(self) -> frozenset[fx.Node]:
        """The operations that are not needed any more."""
        return frozenset((self.node, *(up for up in self.ups if up is not None)))

    def sizes(self) -> tuple[Any, ...]:
        """What each upsampling is told to give, as arguments of the graph."""
        return tuple(None if up is None else told_size(up) for up in self.ups)


def joined_at(node: fx.Node, op: Op, ops: dict[fx.Node, Op], facts: Facts, reads: Reads) -> Joined | None:
    """What stands side by side at a node; None for anything else.

    Args:
        node: a node.
        op: what it is.
        ops: what the nodes in front of it are.
        facts: of the trace.
        reads: of the trace.
    """
    if isinstance(op, Affine):
        factors = _factors(node, op, facts) if told_size(node) is not None else None
        return None if factors is None else _made(node, [(op.source, node, factors)], facts)
    if not isinstance(op, Concat) or op.owners:
        return None
    held: list[tuple[fx.Node, fx.Node | None, tuple[int, ...]]] = []
    for source in op.sources:
        own = ops.get(source)
        alone = reads.readers.get(source, ()) == [node]
        factors = _factors(source, own, facts) if isinstance(own, Affine) and alone else None
        if factors is None or not isinstance(own, Affine):
            held.append((source, None, (1,) * op.axes))
        else:
            held.append((own.source, source, factors))
    if len({len(f) for _, _, f in held}) > 1 or all(up is None for _, up, _ in held):
        return None
    return _made(node, held, facts)


def _made(node: fx.Node, held: list[tuple[fx.Node, fx.Node | None, tuple[int, ...]]], facts: Facts) -> Joined | None:
    known = [w for v, _, f in held if (w := _width(v, f, facts)) is not None]
    if len(known) < len(held):
        return None
    values, ups, factors = zip(*held, strict=True)
    return Joined(node, values, ups, factors, parts_of(factors, known))


def _width(value: fx.Node, factors: tuple[int, ...], facts: Facts) -> int | None:
    shape = facts.shape(value)
    return shape[1] if shape is not None and len(shape) == len(factors) + 2 else facts.channels(value, len(factors))


def _factors(node: fx.Node, op: Affine, facts: Facts) -> tuple[int, ...] | None:
    """By what nearest upsampling repeats each position, per axis; None for anything else."""
    if op.paradigm == "upsample" and op.shape.transposed is not None:
        return tuple(op.shape.transposed[1])
    if told_size(node) is None:
        return None
    before, after = facts.shape(op.source), facts.shape(node)
    if before is None or after is None or any(n < 1 or m % n for n, m in zip(before[2:], after[2:], strict=True)):
        return None
    if not facts.recorder.guarded and not _always(op.source, node):
        return None
    factors = tuple(m // n for n, m in zip(before[2:], after[2:], strict=True))
    return factors if all(map(repeats, factors)) and max(factors) > 1 else None


def _always(source: fx.Node, node: fx.Node) -> bool:
    """Whether the sizes of two values of a graph have the same ratios at every call."""
    before, after = (n.meta.get("sizes", ())[2:] for n in (source, node))
    proven = all(n == m and (n or "fixed" in node.meta) for (_, n), (_, m) in zip(before, after, strict=False))
    return proven and 0 < len(before) == len(after)
