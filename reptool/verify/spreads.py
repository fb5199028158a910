"""Verification of norms that were given to other places: the norm where it stood, against its shares."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx

from reptool.ir.aliasing import Reads
from reptool.ir.nodes import metadata_read
from reptool.ir.ops import Concat
from reptool.ir.trace import Unanswerable
from reptool.passages.spread import Spread, origin
from reptool.plan.inference.facts import Facts
from reptool.verify.originals import Originals

_SIZES = ((5, 4, 3), (12, 10, 6), (16, 16, 16), (40, 36, 34))
MOST = 2**22
"""Elements of a value that is made up."""


class _Known(Originals):
    """Runs original operations; sizes of other values are those of the example inputs, or made up."""

    def run(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        """As any operation, with sizes for values that are not there."""
        of = node.args[0] if node.args else None
        if metadata_read(node) == "shape" and isinstance(of, fx.Node) and not self._there(node, of, memo):
            try:
                return self.facts.recorder.evaluate(node)
            except Unanswerable:
                if node.target == "numel" or node.target == "nelement":
                    raise
                size = torch.Size((2, 8, 16, 16, 16)[: self.facts.rank(of) or 4])
                return size[node.args[1]] if len(node.args) > 1 and node.target is not getattr else size  # type: ignore[index]
        return super().run(node, memo)

    def _there(self, node: fx.Node, value: fx.Node, memo: dict[fx.Node, Any]) -> bool:
        return any(v in memo for v in self._read_as(node, value))


def measure_spread(spread: Spread, norms: set[fx.Node], facts: Facts, reads: Reads) -> float | None:
    """Error of the shares of a norm, against the norm where it stood, on values made up.

    Args:
        spread: the norm and its shares.
        norms: the norms of all spreads; those in front of this one hand on what they read.
        facts: of the trace.
        reads: of the trace.

    Returns:
        The largest error in float64, relative to the largest value; None where nothing could be run.
    """
    for sizes in _sizes(spread):
        try:
            with torch.no_grad():
                pairs = (_ahead if spread.ahead else _back)(spread, norms, _Known(facts, reads), sizes)
        except Exception:  # whatever operations raise at sizes that they do not take
            continue
        if any(a.shape != b.shape for a, b in pairs):
            return float("inf")
        if all(a.numel() for a, _ in pairs):
            return max(float((a - b).abs().max()) / (float(a.abs().max()) + 1e-300) for a, b in pairs)
    return None


Pairs = list[tuple[Tensor, Tensor]]
Size = tuple[int, ...]


def _sizes(spread: Spread) -> Iterator[list[Size | None]]:
    """Sizes along the image to try, for each part or for what the norm reads; None for those of the example inputs."""
    parts = 1 if spread.ahead else len(spread.leaves)
    for size in _alike(spread):
        yield [size] * parts
    if 1 < parts < 5:
        for factors in product((1, 2, 4, 8), repeat=parts):
            yield [(16 // f,) * 3 for f in factors]


def _alike(spread: Spread) -> Iterator[Size | None]:
    if spread.ahead:
        yield None
    yield from _SIZES
    ratios = {op.shape.out_channels // spread.op.shape.out_channels for op in spread.ops
              if op.shape.out_channels and spread.op.shape.out_channels}  # fmt: skip
    for ratio in ratios:
        for k in range(1, 9):
            for a in range(1, ratio + 1):
                if ratio % a == 0 and abs(a - ratio // a) <= max(a, ratio // a) // 2:
                    yield (a * k, ratio // a * k)
        yield (ratio,)
    if not spread.ahead:
        yield None


def _made_up(node: fx.Node, axes: int, channels: int, sizes: Size | None, facts: Facts, seed: int) -> Tensor:
    shape = facts.shape(node)
    rank = facts.rank(node) if shape is None else len(shape)
    if sizes is None:
        assert shape is not None
        whole = [*shape]
    else:
        lead = (2, 3, 4)[: 1 if rank is None else max(rank - 1 - axes, 0)]
        whole = [*lead, channels, *sizes[:axes]]
        assert len(sizes) >= axes
    whole[len(whole) - 1 - axes] = channels
    count = 1
    for size in whole:
        count *= size
    assert count <= MOST
    return torch.randn(whole, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _ahead(spread: Spread, norms: set[fx.Node], originals: Originals, sizes: list[Size | None]) -> Pairs:
    """What the layers behind the norm read: with the norm, and with its shares."""
    facts, reads = originals.facts, originals.reads
    axes = 2 if spread.op.shape.axes is None else len(spread.op.shape.axes)
    rank = facts.rank(spread.source)
    if spread.op.shape.axes is None and rank is not None:
        axes = max(rank - 2, 0)
    x = _made_up(spread.source, axes, spread.op.shape.out_channels or 4, sizes[0], facts, 0)
    order = sorted(spread.tree, key=reads.position.__getitem__)
    read = _read(spread.norm, reads)

    def values(memo: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        for node in order:
            _make_up_beside(spread, node, memo, originals)
            memo[node] = memo[_read(node, reads)] if node in norms else originals.run(node, memo)
        return memo

    wanted = values({spread.norm: originals.run(spread.norm, {read: x})})
    plain = values({spread.norm: x})
    return [
        (wanted[part], originals.run(share, {leaf: plain[part]}))
        for part, leaf, share in zip(spread.parts(), spread.leaves, spread.shares, strict=True)
    ]


def _make_up_beside(spread: Spread, node: fx.Node, memo: dict[fx.Node, Any], originals: Originals) -> None:
    """Values for the other parts of a concatenation, of the sizes of the one that is known."""
    op = originals.facts.ops.get(node)
    parts = [origin(s) for s in op.sources] if isinstance(op, Concat) else []
    for seed, part in enumerate(parts):
        if part not in memo and isinstance(op, Concat):
            size = list(next(memo[p] for p in parts if p in memo).shape)
            size[len(size) - 1 - op.axes] = spread.beside[part]
            generator = torch.Generator().manual_seed(seed + 1)
            memo[part] = torch.randn(size, dtype=torch.float64, generator=generator)


def _back(spread: Spread, norms: set[fx.Node], originals: Originals, sizes: list[Size | None]) -> Pairs:
    """What the norm gives behind its parts, and what stands there behind their shares."""
    facts, reads = originals.facts, originals.reads
    parts: dict[fx.Node, Any] = {}
    known = zip(spread.leaves, spread.ops, spread.widths, spread.axes, strict=True)
    for seed, (leaf, op, width, axes) in enumerate(known):
        parts[leaf] = _made_up(leaf, axes, op.shape.out_channels or width or 4, sizes[seed], facts, seed)
    order = [*sorted(spread.tree, key=reads.position.__getitem__), spread.norm]

    def value(memo: dict[fx.Node, Any], skipped: set[fx.Node]) -> Any:
        for node in order:
            memo[node] = memo[_read(node, reads)] if node in skipped else originals.run(node, memo)
        return memo[spread.norm]

    own = spread.parts()
    wanted = value(dict(zip(own, parts.values(), strict=True)), norms - {spread.norm})
    shares = [originals.run(n, parts) for n in spread.shares]
    return [(wanted, value(dict(zip(own, shares, strict=True)), norms))]


def _read(norm: fx.Node, reads: Reads) -> fx.Node:
    """The value that a norm hands on."""
    node = next(n for n in norm.all_input_nodes if not n.meta["const"])
    return reads.of(norm, node) or node
