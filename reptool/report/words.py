"""The wording that a report's text and pages share."""

from __future__ import annotations

from collections.abc import Iterator

from reptool.models.state import modules_of
from reptool.report.fields import Found, FusedRegion

WORTH_SAYING = 0.01
"""The share of a change of weights from which on it is said that the cast loses it."""
HEADINGS = ("layer", "is now", "multiplications", "error", "after cast", "rules")
NOMINAL = "at a nominal size (one sample of 56x56), since there are no example_inputs"


def counted(count: int, what: str) -> str:
    """``1 module``, ``2 modules``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def summary(report: Found) -> Iterator[tuple[str, str, str]]:
    """What there was before and after, by name."""
    for name, pair in (
        ("convolution and linear layers", report.layers),
        ("batch normalizations", report.norms),
        ("parameters", report.parameters),
    ):
        yield name, f"{pair[0]:,}", f"{pair[1]:,}"
    if report.multiplications is not None:
        before, after = report.multiplications
        yield "multiplications on example_inputs", f"{before:,}", "not known" if after is None else f"{after:,}"
    elif report.regions:
        pairs = [r.multiplications for r in report.regions]
        name = "multiplications of what was fused"
        name += " (nominal size)" if any(r.at == "nominal" for r in report.regions) else ""
        yield name, f"{sum(p[0] for p in pairs):,}", f"{sum(p[1] for p in pairs):,}"
    if report.kept[0]:
        yield "weights kept for fallbacks", "0", f"{report.kept[0]:,} ({size(report.kept[1])})"


def left(report: Found) -> str:
    """How many sites stay."""
    count = len(report.refusals)
    return f"{counted(count, 'site')} left as {'it is' if count == 1 else 'they are'}"


def multiplications(region: FusedRegion) -> str:
    """Those of one region, before and after."""
    before, after = region.multiplications
    return short(before) if before == after else f"{short(before)} -> {short(after)}"


def short(count: int) -> str:
    """A number in at most seven signs.

    >>> short(9_216), short(144_506_880), short(1_234_567)
    ('9,216', '144.5 M', '1.235 M')
    """
    for unit, power in (("T", 12), ("G", 9), ("M", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.4g} {unit}"
    return f"{count:,}"


def notes(report: Found) -> Iterator[str]:
    """What else there is to say, a sentence each."""
    if report.regions and any(r.at == "nominal" for r in report.regions):
        some = "" if all(r.at == "nominal" for r in report.regions) else " where nobody showed what comes in"
        yield f"multiplications are counted {NOMINAL}" if not some else f"multiplications are nominal{some}"
    if report.unused:
        yield f"{counted(len(report.unused), 'norm')} that no call runs: {', '.join(report.unused)}"
    if report.changing:
        yield f"the model itself changes, in eval mode: {modules_of(report.changing)}"
    for path, why in report.untraced.items():
        yield f"could not follow {path or 'the model itself'}: {why}"
    for path, how in report.impulses.items():
        yield f"{path}: {how}"
    for one in report.rewritten:
        where = f"{'; '.join(one.places)}: off by {one.error:.1e} at {counted(one.inputs, 'input')}"
        yield f"rewritten by the rule {one.rule!r}: {where}"
    for method, calls in report.fallbacks.items():
        given = " or ".join(calls) or "no call"
        yield f"{method} is specialized for {given}; otherwise the original code and layers run"
    yield from _of_layers(report)
    if report.model_error is not None:
        deployed, original = report.model_error
        yield f"whole model against float64: deployed {deployed:.2e}, original {original:.2e}"
    if report.model_difference is not None:
        yield f"whole model against the original, in ONNX Runtime: {report.model_difference:.2e}"
    if report.model_error_float64 is not None:
        yield f"deployed in float64 {report.model_error_float64:.2e}: the output depends on rounding"


def _of_layers(report: Found) -> Iterator[str]:
    """Where layers are now, and what their dtype keeps."""
    for path, kind in report.unwrapped.items():
        yield f"{path}: the layer took the place of the {kind} that only handed on to it"
    for path, why in report.wrapped.items():
        yield f"{path} only hands on to a layer, and stays: {why}"
    much = [r for r in report.regions if (r.lost or 0.0) > WORTH_SAYING]
    if much:
        most = max(much, key=lambda r: r.lost or 0.0)
        where = f"in {most.layer}" if len(much) == 1 else f"in {counted(len(much), 'layer')}, most in {most.layer}"
        yield f"the cast loses {most.lost:.0%} of what was folded into the weight {where}; a wider dtype keeps it"


def size(count: int) -> str:
    """A number of bytes."""
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} bytes"


def number(value: float | None) -> str:
    """An error."""
    return "-" if value is None else f"{value:.1e}"
