"""Verification of one region: its own operations against its layer, at sizes that show every border.

The two are compared in float64, relative to the size of the terms (``sum |W|``, the terms that the bias was summed
from, and every value between). What is delivered differs from that layer by the cast alone: there the weights are
compared, number by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from reptool.algebra.budget import is_out_of_memory
from reptool.algebra.kernel import Kernel
from reptool.ir.aliasing import Reads
from reptool.ir.ops import Affine, HandedOn, Op, Unmoved, View
from reptool.lift.layout.resampling import told_size
from reptool.lift.layout.sizes import numbers, steps
from reptool.passages.spread import origin
from reptool.plan.inference.facts import Facts
from reptool.plan.select import Region
from reptool.plan.terms import of_some
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry, arranged, new_layer
from reptool.verify.deformable import compared, is_deformable
from reptool.verify.originals import Originals
from reptool.verify.sizes import (
    MAX_SIZES,
    made_up,
    numbers_of,
    of_one_position,
    resampled_sizes,
    several_made_up,
    sizes_of,
    upsampled,
)

Verify = Literal["full", "fast"] | bool
"""How much is verified: all sizes, one size, or nothing; True is all."""
Values = tuple[Tensor, Tensor | None]
Given = Tensor | tuple[Tensor, ...]
"""What a region reads: its root, or all that stands side by side."""


@dataclass
class Measured:
    """Errors of one region, relative to ``sum |W| |x| + |b|``.

    Args:
        exact: largest error in float64, before the cast.
        cast: largest change of a weight or bias by the cast, relative to the largest one.
        size: the input size with the largest float64 error.
        sizes: how many sizes were tried.
        lost: share of what was folded into the layer's own weight that the cast loses, ``|cast(W + D) - W - D| / |D|``;
            None where nothing was, or the layer is another one.
    """

    exact: float = 0.0
    cast: float = 0.0
    size: tuple[int, ...] = ()
    sizes: int = 0
    lost: float | None = None


class Reference(Originals):
    """Runs the original operations of a region in float64."""

    def __init__(self, region: Region, ops: dict[fx.Node, Op], facts: Facts, reads: Reads) -> None:
        super().__init__(facts, reads)
        self.region, self.ops = region, ops
        self.known: dict[Any, int] = {}  # sizes that views are given
        own = [n for n in region.form.ops if "passed" in n.meta]
        self.instead = {ops[n].sources[0]: n for n in own}
        self.passed = {p for n in own for p in n.meta["passed"]}

    def _read_as(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        """A share in place of the value behind which it stands, where the node reads the share."""
        found = super()._read_as(node, value)
        op = self.ops.get(node)
        shares = [s for s in op.sources if s.meta.get("share")] if op is not None else []
        return [s for s in shares if origin(s) in found and s is not node] + found

    def __call__(self, x: Given) -> tuple[Tensor, float]:
        """The region's value for the root value `x`, or all that it reads, and the largest value between the two."""
        memo: dict[fx.Node, Any] = dict(zip(self.region.form.reads, x if isinstance(x, tuple) else (x,), strict=True))
        given = set(memo)
        self.known = {}
        position = self.reads.position
        with torch.no_grad():
            for node in sorted(self.region.form.ops, key=position.__getitem__):
                memo[node] = self._of_some(node, memo) if node.target is of_some else self._of(node, memo)
        out = memo[self.region.value]
        assert isinstance(out, Tensor)
        inner = (v for n, v in memo.items() if n not in given and isinstance(v, Tensor))
        return out, max(map(largest, inner), default=0.0)

    def _of(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        op = self.ops[node]
        if isinstance(op, View):
            return self._viewed(node, op, memo[op.source])
        if self.region.form.joined is not None and isinstance(op, Affine) and told_size(node) is not None:
            return upsampled(self.region.form.joined, node, memo[op.source])
        return memo[op.source] if isinstance(op, (HandedOn, Unmoved)) else self.run(node, memo)

    def _viewed(self, node: fx.Node, op: View, x: Tensor) -> Tensor:
        """A view, to sizes that may be read from elsewhere: as many as of what it reads here."""
        before, given = op.given or ((), ())
        sizes = numbers(given, before, x.shape, self.known) if given else None
        if sizes is not None:
            return x.reshape(sizes)
        found: Tensor = self.run(node, dict.fromkeys((node.all_input_nodes[0], op.source), x))
        return found

    def _of_some(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        """An addition of some of its operands: the others are zero."""
        whole, parts = node.meta["share_of"], node.meta["parts"]
        held = {s: memo[p] for s, p in parts.items()}
        zero = torch.zeros_like(next(iter(held.values())))
        given = {s: held.get(s, zero) for s in self.ops[whole].sources}
        for source in list(given):
            value = source
            while "share_of" in value.meta and "parts" not in value.meta:
                value = self.ops[value].sources[0]
                given[value] = given[source]
        return self._of(whole, given)

    def views(self, y: Tensor) -> Tensor:
        """The layer's output through the views that stay behind it."""
        for node in sorted(self.region.form.ops, key=self.reads.position.__getitem__):
            op = self.ops[node]
            if isinstance(op, View):
                y = self._viewed(node, op, y)
        return y


def largest(tensor: Tensor) -> float:
    """The largest size of a value; NaN if there is one."""
    return max(abs(float(end)) for end in torch.aminmax(tensor)) if tensor.numel() else 0.0


def measure(
    region: Region, shape: Geometry, cast: Values, ops: dict[fx.Node, Op], facts: Facts, reads: Reads,
    rank: int | None, verify: Verify = True,
) -> Measured | Refusal:  # fmt: skip
    """Errors of a region's layer.

    Args:
        region: what the layer replaces.
        shape: of the layer.
        cast: its weight and bias as they are delivered.
        ops: the operations of the trace.
        facts: of the trace.
        reads: of the trace.
        rank: of what it reads, where it is known.
        verify: how many sizes are tried.
    """
    kernel = region.form.kernel()
    if isinstance(kernel, Refusal):
        return kernel
    reference = Reference(region, ops, facts, reads)
    exact = _on_cpu(arranged(kernel, region.form.parts))
    try:
        compare = _compare_deformable if is_deformable(kernel) else _compare
        found = compare(region, kernel, (exact, _on_cpu(cast)), reference, shape, rank, verify)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Refusal(Code.TOO_LARGE, "checking it ran out of memory", (region.value.name,))
    if not found.sizes:
        sized = any(isinstance(ops[n], View) for n in region.form.ops)  # views may ask for sizes that nobody guesses
        code = Code.NOT_RUN if sized else Code.EXTENT
        return Refusal(code, "the original runs at none of the sizes tried", (region.value.name,))
    return found


def _on_cpu(values: Values) -> Values:
    return values[0].cpu(), None if values[1] is None else values[1].cpu()


def _compare(
    region: Region, kernel: Kernel, values: tuple[Values, Values], reference: Reference, shape: Geometry,
    rank: int | None, verify: Verify,
) -> Measured:  # fmt: skip
    found, layer, terms = Measured(), new_layer(shape, *values[0]), _terms(kernel)
    generator = torch.Generator().manual_seed(0)
    original = [reference.ops[n] for n in region.form.ops]
    count = 1 if verify == "fast" else MAX_SIZES
    shown = resampled_sizes(region.form) if region.form.around else sizes_of(kernel, original, count)
    joined = region.form.joined
    whole = [] if joined is not None else _whole_shapes(region, kernel, reference, rank)
    for sizes in (*shown, [of_one_position(kernel)], whole):
        for size in sizes:
            x: Given = made_up(kernel, size, rank, generator) if sizes is not whole else numbers_of(size, generator)
            if joined is not None:
                x = several_made_up(joined, size, generator)
            try:
                wanted, inner = reference(x)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                continue  # the original refuses this size (a concatenation of unequal maps, a map too small)
            if not wanted.numel():
                continue
            got = _result(layer, x, reference)
            found.sizes += 1
            if got is None or wanted.shape != got.shape:
                found.exact, found.size = float("inf"), size
                return found
            off = largest(wanted - got) / (max(terms, inner) + 1e-300)
            if not off <= found.exact:
                found.exact, found.size = off, size
        if found.sizes >= len(sizes):
            break
    found.cast = max(cast_error(a, b) for a, b in zip(*values, strict=True) if a is not None and b is not None)
    return found


def _whole_shapes(region: Region, kernel: Kernel, reference: Reference, rank: int | None) -> list[tuple[int, ...]]:
    """Shapes of the root for views that take no others: that of the example, and one that they divide."""
    views = [op for n in region.form.ops if isinstance(op := reference.ops[n], View)]
    own = reference.facts.shape(region.root)
    step, channels = steps(views), kernel.in_channels
    if not views or channels is None or step > MAX_STEP:
        return [] if own is None or not views else [own]
    axes = kernel.axes or ()
    around = [-(-(a.span + 1) // step) * step for a in axes]
    divided = (step, channels, *around) if axes else (*[step] * ((rank or 2) - 1), channels)
    return [divided] if own is None else [own, divided]


MAX_STEP = 64
"""Samples and positions of one input at most."""


def _result(layer: nn.Module, x: Given, reference: Reference) -> Tensor | None:
    """What a layer gives, behind the views that stay behind it; None where it does not run."""
    try:
        with torch.no_grad():
            return reference.views(layer(x))
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None


def _terms(kernel: Kernel) -> float:
    """The largest ``sum |W| + |b|`` of an output channel, of the terms that the bias was summed from."""
    assert kernel.weight is not None
    rows = max(1, BLOCK // max(kernel.weight[0].numel(), 1))
    sums = torch.cat([part.abs().flatten(1).sum(1) for part in kernel.weight.split(rows)])
    terms = kernel.bias if kernel.bias_terms is None else kernel.bias_terms
    return largest(sums if terms is None else sums + terms.abs())


BLOCK = 2**15
"""Numbers that are worked on at once: they fit the cache."""


def cast_error(exact: Tensor, cast: Tensor) -> float:
    """The largest change of a number by the cast, beyond the least step of its dtype, relative to the largest number.

    >>> cast_error(torch.tensor([1.0, 3.0]).double(), torch.tensor([1.0, 3.03])) < 0.0101
    True
    """
    if not exact.numel():
        return 0.0
    rows = max(1, BLOCK // max(exact[0].numel(), 1))
    off = max(largest(a - b) for a, b in zip(exact.split(rows), cast.split(rows), strict=True))
    kind = torch.finfo(cast.dtype)
    return max(off - kind.smallest_normal * kind.eps, 0.0) / (largest(exact) + 1e-300)


def _compare_deformable(
    region: Region, kernel: Kernel, values: tuple[Values, Values], reference: Reference, *_: Any
) -> Measured:
    found = Measured()
    exact, cast = values
    terms = kernel.bias_terms if kernel.bias_terms is not None else kernel.bias
    delivered = (cast[0].double(), None if cast[1] is None else cast[1].double())
    layers = (exact, delivered, (exact[0].abs(), None if terms is None else terms.abs().cpu()))
    for size, wanted, (got, rounded), bound in compared(region, kernel, reference.ops, reference, layers):
        found.sizes += 1
        errors = [float((wanted - v).abs().max()) / (bound + 1e-300) for v in (got, rounded)]
        if not errors[0] <= found.exact:
            found.exact, found.size = errors[0], size
        found.cast = max(found.cast, errors[1])
    return found
