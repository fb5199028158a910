"""Measuring: every region against its own operations, the whole model against the original."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reptool._copies import full_copy
from reptool._report import Report
from reptool.counting import Multiplications
from reptool.dice import kept_dice
from reptool.engine import Unit, layer_name
from reptool.errors import InputError, UnsupportedModelError, VerificationError
from reptool.inputs import check_inputs_run
from reptool.kernel import Kernel
from reptool.lower import values
from reptool.places import place_of
from reptool.progress import unit as begun
from reptool.refusal import Code, Refusal
from reptool.rules import rules_of
from reptool.state import changed_since, held_by, modules_of
from reptool.surgery import Site
from reptool.tensors import cloned, tensors_in
from reptool.verify import EXACT, Measured, measure, measure_spread, tolerance

MODEL_FLOOR = 5e-6
ROUNDING = 10  # two roundings of one model were seen to differ by a factor of 3; a wrong region is off by far more
Values = dict[Site, tuple[Measured | None, Tensor, Tensor | None]]


def measured_unit(unit: Unit, verify: bool) -> Values:
    """The weights of every new layer, with the errors that were measured."""
    out: Values = {}
    for site in list(unit.surgery.sites):
        assert site.place is not None
        name = layer_name(unit, site)
        begun(name)
        found: Any
        if verify:
            found = measure(
                site.region,
                site.shape,
                site.place,
                unit.found.ops,
                unit.facts,
                unit.reads,
                unit.facts.rank(site.region.root),
            )
        else:
            kernel = site.region.form.kernel()
            made = site.cast or (values(kernel, site.place) if isinstance(kernel, Kernel) else kernel)
            found = made if isinstance(made, Refusal) else (None, *made)
        if isinstance(found, Refusal):
            raise _value_error(found, name, unit, site)
        errors = found[0]
        if errors is not None:
            if not errors.exact <= EXACT:
                raise VerificationError(
                    f"region {name!r} ({', '.join(sorted(rules_of(site.region.form, unit.found)))}) "
                    f"is off by {errors.exact:.3g} "
                    f"at input size {errors.size}; nothing was changed. Exclude it and report this"
                )
            if not errors.cast <= tolerance(site.place.dtype):
                raise VerificationError(
                    f"region {name!r} is off by {errors.cast:.3g} after the cast to {site.place.dtype} "
                    f"at input size {errors.size}; "
                    "nothing was changed. Exclude it, or deploy in a wider dtype"
                )
        out[site] = found
    if verify:
        _check_spreads(unit)
    return out


def _check_spreads(unit: Unit) -> None:
    """Every norm that was given to the parts in front of it, against the norm where it stood."""
    norms = {s.norm for s in unit.found.spreads}
    for spread in unit.found.spreads:
        error = measure_spread(spread, norms, unit.facts, unit.reads)
        if not error <= EXACT:
            raise VerificationError(
                f"the norm {place_of(spread.norm)!r} (distribute) is off by {error:.3g} behind its parts; "
                "nothing was changed. Exclude it and report this"
            )


def _value_error(refusal: Refusal, name: str, unit: Unit, site: Site) -> Exception:
    if refusal.code is Code.NON_FINITE:
        bad = ", ".join(_not_finite(unit, site)) or place_of(site.region.value)
        return InputError(f"region {name!r}: {refusal}: NaN or infinity in {bad}; repair or exclude it first")
    return VerificationError(f"region {name!r}: {refusal}; nothing was changed. Exclude it, or deploy in a wider dtype")


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


@dataclass
class Reference:
    """One run of the model itself on the example inputs.

    Args:
        own: its output.
        exact: its output in float64; None where it cannot run there, or where nobody asked for it.
        changing: parameters and buffers that it changed.
        multiplications: how many it executed; None where not all of them could be counted.
    """

    own: Any
    exact: Any
    changing: list[str]
    multiplications: int | None


def reference_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], wide: bool) -> Reference:
    """One run of the model itself, and its output in float64 if that is asked for (`wide`)."""
    with kept_dice():
        ran = full_copy(model)
        before = held_by(ran)
        with Multiplications() as counted:
            own = check_inputs_run(ran, cloned(args), cloned(kwargs))
    found = Reference(own, None, changed_since(before, ran), counted.known)
    if not wide:
        return found
    try:
        double = full_copy(model).double()
        with torch.no_grad(), kept_dice():
            found.exact = double(*cloned(args, True), **cloned(kwargs, True))
    except Exception:  # a model that fixes a dtype in its code
        found.exact = None
    return found


def whole_error(found: Any, wanted: Any) -> float:
    """The largest difference of two outputs, relative to the largest value of its tensor."""
    a, b = ([t.detach() for t in tensors_in(v)] for v in (found, wanted))
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if y.numel():
            off = float((x.double() - y.double()).abs().nan_to_num(0.0).max()) / (
                float(y.double().abs().nan_to_num(0.0).max()) + 1e-12
            )
            worst = max(worst, off)
            if bool((x.isnan() != y.isnan()).any()):
                return float("nan")
    return worst


def compare_whole(
    target: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    reference: Reference | None,
    found: Report,
    exactly: Callable[[], float],
) -> None:
    """Compare the whole deployed model with the original on the example inputs.

    Where that is off and `exactly`, the same in float64, is not, the output hangs on rounding (boxes are sorted, pixels
    get classes): then it is that error that counts, and both are reported.
    """
    assert reference is not None
    own, exact = reference.own, reference.exact
    with torch.no_grad(), kept_dice(), Multiplications() as counted:
        out = full_copy(target)(*cloned(args), **cloned(kwargs))
    if reference.multiplications is not None:
        found.multiplications = reference.multiplications, counted.known
    dtypes = [t.dtype for t in tensors_in(own)] or [torch.float32]
    floor = max(MODEL_FLOOR, 40 * max(torch.finfo(d).eps for d in dtypes))
    wanted = own if exact is None else exact
    error, base = whole_error(out, wanted), whole_error(own, wanted)
    found.model_error = (error, base)
    if error <= max(ROUNDING * base, floor):
        return
    if found.changing:
        raise UnsupportedModelError(
            f"the {found.model} changes its own state when it runs in eval mode: {modules_of(found.changing)}; what is "
            f"deployed would change it otherwise (it is off by {error:.3g} on example_inputs); nothing was changed. "
            "Take observers out or freeze what they hold, then deploy"
        )
    found.model_error_float64 = float("inf") if exact is None else exactly()
    if not found.model_error_float64 <= EXACT:
        raise VerificationError(
            f"the deployed {found.model} is off by {error:.3g} on example_inputs (the original itself by {base:.3g}); "
            "nothing was changed. Every region was exact by itself: a region is used in a way that was not seen. "
            "Exclude parts to find it and report this"
        )
