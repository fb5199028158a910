"""Verification: every region by itself, its own operations against its layer, at sizes that show every border.

Before the cast in float64 to `EXACT`, relative to the size of the terms (``sum |W| |x|``, the terms that the bias was
summed from, and every value between); after it to `CAST` times the eps of the layer's dtype, or to `EXACT` where that
is less. Per axis as many consecutive sizes are tried as the product of the strides, from the span of the kernel plus
all paddings on, with H != W and two samples. A region that fails is refused by itself: the rest of the model is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reptool.algebra.budget import BYTES, check_bytes, is_out_of_memory, smallest_size
from reptool.algebra.kernel import Kernel
from reptool.errors import InputError
from reptool.ir.aliasing import Reads
from reptool.ir.ops import Affine, HandedOn, Op, View
from reptool.passages.spread import origin
from reptool.plan.inference import Facts
from reptool.plan.rules import rules_of
from reptool.plan.select import Region
from reptool.pysource.places import place_of
from reptool.refusal import Code, Refusal
from reptool.report.progress import unit as begun
from reptool.rewrite.lower import Geometry, Place, new_layer, values
from reptool.surgery.site import Site
from reptool.surgery.units import GivenUp, Unit, key_of, layer_name
from reptool.verify.bare import measure_bare
from reptool.verify.deformable import compared, is_deformable
from reptool.verify.originals import Originals
from reptool.verify.spreads import measure_spread

EXACT = 1e-10
CAST = 64.0
MAX_SIZES = 4


@dataclass
class Measured:
    """Errors of one region, relative to ``sum |W| |x| + |b|``.

    Args:
        exact: largest error in float64, before the cast.
        cast: largest error of the layer as it is delivered.
        size: the input size with the largest float64 error.
        sizes: how many sizes were tried.
    """

    exact: float = 0.0
    cast: float = 0.0
    size: tuple[int, ...] = ()
    sizes: int = 0


class Reference(Originals):
    """Runs the original operations of a region in float64."""

    def __init__(self, region: Region, ops: dict[fx.Node, Op], facts: Facts, reads: Reads) -> None:
        super().__init__(facts, reads)
        self.region, self.ops = region, ops
        own = [n for n in region.form.ops if "passed" in n.meta]
        self.instead = {ops[n].sources[0]: n for n in own}
        self.passed = {p for n in own for p in n.meta["passed"]}

    def _read_as(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        """A share in place of the value behind which it stands, where the node reads the share."""
        found = super()._read_as(node, value)
        op = self.ops.get(node)
        shares = [s for s in op.sources if s.meta.get("share")] if op is not None else []
        return [s for s in shares if origin(s) in found and s is not node] + found

    def __call__(self, x: Tensor) -> tuple[Tensor, float]:
        """The region's value for the root value `x`, and the largest value between the two."""
        memo: dict[fx.Node, Any] = {self.region.root: x}
        position = self.reads.position
        with torch.no_grad():
            for node in sorted(self.region.form.ops, key=position.__getitem__):
                memo[node] = self._of_some(node, memo) if "parts" in node.meta else self._of(node, memo)
        out = memo[self.region.value]
        assert isinstance(out, Tensor)
        inner = (v for n, v in memo.items() if n is not self.region.root and isinstance(v, Tensor) and v.numel())
        return out, max((float(v.abs().max()) for v in inner), default=0.0)

    def _of(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        op = self.ops[node]
        return memo[op.source] if isinstance(op, HandedOn) else self.run(node, memo)

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
            if isinstance(self.ops[node], View):
                y = self.run(node, dict.fromkeys((node.all_input_nodes[0], *self.ops[node].sources), y))
        return y


def test_sizes(kernel: Kernel, reference: list[Op]) -> list[tuple[int, ...]]:
    """Input sizes that show every tap at every border: see the module's text."""
    axes = kernel.axes or ()
    if kernel.transposed is not None:
        return [tuple(range(3, 3 + len(axes)))]
    if not axes:
        return [()]
    base, period = [], []
    for i, axis in enumerate(axes):
        pads = 0
        for op in reference:
            if isinstance(op, Affine) and op.shape.axes and len(op.shape.axes) == len(axes):
                pads += abs(op.shape.axes[i].before) + abs(op.shape.axes[i].after)
        pads = max(pads, abs(axis.before) + abs(axis.after))  # a crop behind a stride is as many times as wide
        least = axis.span + 1 + max(pads, 1)
        base.append(-(-least // axis.stride) * axis.stride)
        period.append(min(max(axis.stride, 1), MAX_SIZES))
    count = max(period)
    wider = [2 * (i + 1) * axis.stride for i, axis in enumerate(axes)]
    sizes = [tuple(b + i + k for i, b in zip([0, *wider], base, strict=False)) for k in range(count)]
    return [s for s in sizes if check_bytes(kernel, s, BATCH) <= BYTES] or [
        tuple(n + i for i, n in enumerate(smallest_size(axes)))
    ]


def measure(
    region: Region, shape: Geometry, place: Place, ops: dict[fx.Node, Op], facts: Facts, reads: Reads, rank: int | None
) -> tuple[Measured, Tensor, Tensor | None] | Refusal:
    """Errors of a region's layer, and the values it will have.

    Returns:
        The errors with the cast weight and bias, or the refusal of the values.
    """
    kernel = region.form.kernel()
    if isinstance(kernel, Refusal):
        return kernel
    exact = values(kernel, Place(torch.float64, torch.device("cpu")))
    cast = values(kernel, place)
    for v in (exact, cast):
        if isinstance(v, Refusal):
            return v
    assert not isinstance(exact, Refusal) and not isinstance(cast, Refusal)
    try:
        found = _compare(region, kernel, shape, exact, cast, Reference(region, ops, facts, reads), rank)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return Refusal(Code.TOO_LARGE, "checking it ran out of memory", (region.value.name,))
    if not found.sizes:
        return Refusal(Code.EXTENT, "the original runs at none of the sizes tried", (region.value.name,))
    return found, *cast


Values = tuple[Tensor, Tensor | None]


def _compare(
    region: Region, kernel: Kernel, shape: Geometry, exact: Values, cast: Values, reference: Reference, rank: int | None
) -> Measured:
    terms = kernel.bias_terms if kernel.bias_terms is not None else kernel.bias
    if is_deformable(kernel):
        return _compare_deformable(region, kernel, (exact, cast), terms, reference)
    double = new_layer(shape, *exact)
    absolute = new_layer(shape, exact[0].abs(), None if terms is None else terms.abs().cpu())
    delivered = new_layer(shape, cast[0].double().cpu(), None if cast[1] is None else cast[1].double().cpu())
    generator = torch.Generator().manual_seed(0)
    found = Measured()
    sizes = test_sizes(kernel, [reference.ops[n] for n in region.form.ops])
    for i, size in enumerate([*sizes, _of_one_position(kernel)]):
        if i == len(sizes) and found.sizes:
            break
        x = _input(kernel, size, rank, generator)
        try:
            wanted, between = reference(x)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            continue  # the original refuses this size (a concatenation of unequal maps, a map too small)
        if not wanted.numel():
            continue
        with torch.no_grad():
            got, scale, rounded = reference.views(double(x)), absolute(x.abs()), reference.views(delivered(x))
        found.sizes += 1
        if wanted.shape != got.shape:
            found.exact, found.size = float("inf"), size
            return found
        bound = max(float(scale.max()), between) + 1e-300
        error_exact, error_cast = (float((wanted - v).abs().max()) / bound for v in (got, rounded))
        if not error_exact <= found.exact:
            found.exact, found.size = error_exact, size
        found.cast = max(found.cast, error_cast)
    return found


def _compare_deformable(
    region: Region, kernel: Kernel, values: tuple[Values, Values], terms: Tensor | None, reference: Reference
) -> Measured:
    found = Measured()
    exact, cast = values
    delivered = (cast[0].double().cpu(), None if cast[1] is None else cast[1].double().cpu())
    layers = (exact, delivered, (exact[0].abs(), None if terms is None else terms.abs().cpu()))
    for size, wanted, (got, rounded), bound in compared(region, kernel, reference.ops, reference, layers):
        found.sizes += 1
        errors = [float((wanted - v).abs().max()) / (bound + 1e-300) for v in (got, rounded)]
        if not errors[0] <= found.exact:
            found.exact, found.size = errors[0], size
        found.cast = max(found.cast, errors[1])
    return found


def _of_one_position(kernel: Kernel) -> tuple[int, ...]:
    """The least size with a result: what is flattened behind it may have to be of one position."""
    return tuple(max(1 - a.extent, 1) for a in kernel.axes or ()) if kernel.transposed is None else ()


BATCH = 2


def _input(kernel: Kernel, size: tuple[int, ...], rank: int | None, generator: torch.Generator) -> Tensor:
    channels = kernel.in_channels
    assert channels is not None
    if kernel.axes == ():
        lead = [BATCH] if rank is None or rank == 2 else [BATCH, *range(3, 3 + rank - 2)]
        return torch.randn(*lead, channels, dtype=torch.float64, generator=generator)
    batch = BATCH if check_bytes(kernel, size, BATCH) <= BYTES else 1
    return torch.randn(batch, channels, *size, dtype=torch.float64, generator=generator)


def tolerance(dtype: torch.dtype) -> float:
    """Largest error allowed after the cast to `dtype`."""
    return max(CAST * torch.finfo(dtype).eps, EXACT)


# --- all regions of a unit ------------------------------------------------------------------------------------------
Checked = dict[Site, tuple[Measured | None, Tensor, Tensor | None]]
"""The weights of every new layer, with the errors that were measured."""


def checked_unit(unit: Unit, verify: bool) -> tuple[Checked, GivenUp]:
    """The weights of every new layer with the errors that were measured, and the regions that failed.

    Raises:
        InputError: a weight of the model is NaN or infinite.
    """
    out: Checked = {}
    failed = GivenUp()
    for site in unit.surgery.sites:
        begun(layer_name(unit, site))
        found = _checked(unit, site, verify)
        if isinstance(found, Refusal):
            failed.regions[key_of(unit, site.region)] = found.at(site.region.value.name)
        else:
            out[site] = found
    if verify and not failed:
        failed.add(_failed_spreads(unit))
        failed.add(_failed_bare(unit))
    return out, failed


def _checked(unit: Unit, site: Site, verify: bool) -> tuple[Measured | None, Tensor, Tensor | None] | Refusal:
    assert site.place is not None
    region = site.region
    found: Any
    if verify:
        rank = unit.facts.rank(region.root)
        found = measure(region, site.shape, site.place, unit.found.ops, unit.facts, unit.reads, rank)
    else:
        kernel = region.form.kernel()
        made = site.cast or (values(kernel, site.place) if isinstance(kernel, Kernel) else kernel)
        found = made if isinstance(made, Refusal) else (None, *made)
    if isinstance(found, Refusal):
        if found.code is Code.NON_FINITE:
            bad = ", ".join(_not_finite(unit, site)) or place_of(region.value)
            raise InputError(
                f"region {layer_name(unit, site)!r}: {found}: NaN or infinity in {bad}; repair or exclude it first"
            )
        return found
    return _judged(found, unit, site) or found


def _judged(found: tuple[Measured | None, Tensor, Tensor | None], unit: Unit, site: Site) -> Refusal | None:
    """Why a region that was measured cannot stand."""
    errors = found[0]
    if errors is None:
        return None
    rules = ", ".join(sorted(rules_of(site.region.form, unit.found)))
    where = f"region {layer_name(unit, site)!r} ({rules})"
    if not errors.exact <= EXACT:
        return Refusal(Code.UNVERIFIED, f"{where} is off by {errors.exact:.3g} at input size {errors.size}")
    assert site.place is not None
    if not errors.cast <= tolerance(site.place.dtype):
        cast = f"after the cast to {site.place.dtype} at input size {errors.size}; deploy in a wider dtype"
        return Refusal(Code.UNVERIFIED, f"{where} is off by {errors.cast:.3g} {cast}")
    return None


def _failed_spreads(unit: Unit) -> GivenUp:
    """The regions that took shares of a norm which is another one where it stood."""
    failed = GivenUp()
    norms = {s.norm for s in unit.found.spreads}
    for spread in unit.found.spreads:
        error = measure_spread(spread, norms, unit.facts, unit.reads)
        if error is not None and error <= EXACT:
            continue
        where = place_of(spread.norm)
        refusal = Refusal(Code.UNVERIFIED, f"the norm {where!r} (distribute) is off by {error} where it went")
        for site in unit.surgery.sites:
            if set(spread.shares) & site.region.form.ops:
                failed.regions[key_of(unit, site.region)] = refusal.at(site.region.value.name)
    return failed


def _failed_bare(unit: Unit) -> GivenUp:
    """The regions that took the scale and shift of a norm which is another one with them where they stand now."""
    failed = GivenUp()
    for behind in unit.found.bare.values():
        error = measure_bare(behind, unit.facts, unit.reads)
        if error <= EXACT:
            continue
        sentence = f"the scale and shift of {place_of(behind.norm)!r} are off by {error:.3g} where they would go"
        for site in unit.surgery.sites:
            if behind.ops.keys() & site.region.form.ops:
                refusal = Refusal(Code.UNVERIFIED, sentence).at(site.region.value.name)
                failed.regions[key_of(unit, site.region)] = refusal
    return failed


def _not_finite(unit: Unit, site: Site) -> list[str]:
    """Paths of the tensors in a region that hold NaN or infinity."""
    owners = [o for n in site.region.form.ops for o in unit.found.ops[n].owners]
    root = unit.trace.root
    return sorted(
        f"{unit.prefix}.{name}".strip(".")
        for name, tensor in (*root.named_parameters(), *root.named_buffers())
        if any(name == o or name.startswith(f"{o}." if o else "") for o in owners)
        and tensor.is_floating_point()
        and not bool(tensor.isfinite().all())
    )
