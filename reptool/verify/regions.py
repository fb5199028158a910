"""Verification of all regions of a trace; one that fails is refused by itself: the rest of the model is right.

Errors are those of `reptool.verify.measure`: up to `EXACT` before the cast, after it up to `CAST` times the eps of the
layer's dtype, or `EXACT` where that is less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reptool.algebra.kernel import Kernel
from reptool.errors import InputError
from reptool.plan.rules import rules_of
from reptool.pysource.places import place_of
from reptool.refusal import Code, Refusal
from reptool.report.progress import unit as begun
from reptool.rewrite.lower import arranged, values
from reptool.surgery.site import Site
from reptool.surgery.units import GivenUp, Unit, key_of, layer_name
from reptool.verify.bare import measure_bare
from reptool.verify.measure import BLOCK, Measured, Verify, measure
from reptool.verify.spreads import measure_spread

EXACT = 1e-10
CAST = 64.0

Checked = dict[Site, tuple[Measured | None, Tensor, Tensor | None]]
"""The weights of every new layer, with the errors that were measured."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest error allowed after the cast to `dtype`."""
    return max(CAST * torch.finfo(dtype).eps, EXACT)


def checked_unit(unit: Unit, verify: Verify) -> tuple[Checked, GivenUp]:
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


def _checked(unit: Unit, site: Site, verify: Verify) -> tuple[Measured | None, Tensor, Tensor | None] | Refusal:
    assert site.place is not None
    region, kernel = site.region, site.region.form.kernel()
    made = site.cast or (values(kernel, site.place, region.form.parts) if isinstance(kernel, Kernel) else kernel)
    found: Measured | Refusal | None = made if isinstance(made, Refusal) else None
    if verify and not isinstance(made, Refusal):
        rank = unit.facts.rank(region.root)
        found = measure(region, site.shape, made, unit.found.ops, unit.facts, unit.reads, rank, verify)
    if isinstance(found, Refusal):
        if found.code is Code.NON_FINITE:
            bad = ", ".join(_not_finite(unit, site)) or place_of(region.value)
            raise InputError(
                f"region {layer_name(unit, site)!r}: {found}: NaN or infinity in {bad}; repair or exclude it first"
            )
        return found
    assert not isinstance(made, Refusal)
    if found is not None and isinstance(kernel, Kernel):
        found.lost = _lost(unit, site, kernel, made[0])
    return (None if found is None else _judged(found, unit, site)) or (found, *made)


def _lost(unit: Unit, site: Site, kernel: Kernel, cast: Tensor) -> float | None:
    """The share of what was folded into a layer's own weight that the cast loses."""
    layer = unit.trace.root.get_submodule(site.slot) if site.slot is not None and site.reuse else None
    own, exact = None if layer is None else layer._parameters.get("weight"), arranged(kernel)[0].detach()
    if own is None or own.shape != exact.shape or own.is_meta:
        return None  # one that is computed is no number to compare with
    change = _distance(exact, own.detach())
    return _distance(exact, cast.detach()) / change if change else None


def _distance(exact: Tensor, other: Tensor) -> float:
    """The Euclidean norm of the difference, worked out in pieces that fit the cache."""
    rows = max(1, BLOCK * len(exact) // max(exact.numel(), 1))
    pieces = zip(exact.split(rows), other.split(rows), strict=True)
    return math.hypot(*(float(torch.linalg.vector_norm(a - b.to(a))) for a, b in pieces))


def _judged(errors: Measured, unit: Unit, site: Site) -> Refusal | None:
    """Why a region that was measured cannot stand."""
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
