"""A plan, and what was measured, as a report."""

from __future__ import annotations

from torch import fx, nn

from reptool._report import FusedRegion, Report
from reptool.engine import Plan, Unit, layer_name
from reptool.errors import RequirementError
from reptool.lower import Geometry
from reptool.measuring import Values
from reptool.places import placed
from reptool.rules import rules_of


def report_of(model: nn.Module, plan: Plan, measured: dict[str, Values]) -> Report:
    """The report on a plan and what was measured."""
    out = Report(type(model).__name__, untraced=dict(plan.untraced), refusals=list(plan.unseen))
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    gone_layers, gone_norms = 0, set[fx.Node]()
    for unit in plan.units:
        out.specialized += unit.questions
        _add_fallbacks(out, unit)
        out.refusals += placed(unit.trace.graph, unit.refusals.values())
        seen: set[str] = set()
        for site in unit.surgery.sites:
            region, form = site.region, site.region.form
            absorbed = list(
                dict.fromkeys(
                    o for n in sorted(form.ops, key=unit.reads.position.__getitem__) for o in unit.found.ops[n].owners
                )
            )
            full = [".".join(p for p in (unit.prefix, o) if p) for o in absorbed]
            name = layer_name(unit, site)
            out.impulses.update({p: plan.impulses[p] for p in full if p in plan.impulses})
            errors = measured.get(unit.prefix, {}).get(site, (None,))[0]
            if name in seen:
                continue
            seen.add(name)
            out.regions.append(
                FusedRegion(
                    name,
                    _shown(site.shape),
                    full,
                    sorted(rules_of(form, unit.found)),
                    (region.before.multiplications, region.after.multiplications),
                    (region.before.total, region.after.total),
                    None if errors is None else errors.exact,
                    None if errors is None else errors.cast,
                    0 if errors is None else errors.sizes,
                )
            )
            out.names[name] = full
            gone_layers += region.before.layers - region.after.layers
            norms_of = [n for n in form.ops if unit.found.ops[n].paradigm == "bn"]
            gone_norms |= {unit.found.shares[n].norm if n in unit.found.shares else n for n in norms_of}
    layers = sum(isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)) for m in model.modules())
    out.layers, out.norms = (layers, layers - gone_layers), (norms, max(norms - len(gone_norms), 0))
    out.parameters = (sum(p.numel() for p in model.parameters()),) * 2
    return out


def _add_fallbacks(out: Report, unit: Unit) -> None:
    kept = list(unit.surgery.keeping.values())
    out.kept = (out.kept[0] + sum(k.weights for k in kept), out.kept[1] + sum(k.size for k in kept))
    if unit.surgery.fallbacks is not None:
        for (path, method), fallback in unit.surgery.fallbacks.found.items():
            name = ".".join(p for p in (unit.prefix, path) if p) or "<root>"
            out.fallbacks[f"{name}.{method}"] = [str(g) for g in fallback.guards]


def _shown(shape: Geometry) -> str:
    if shape.kind == "linear":
        return f"Linear({shape.in_channels}, {shape.out_channels})"
    name = "ConvTranspose" if shape.kind == "transposed" else "Conv"
    extra = "".join(
        f", {k}={v}"
        for k, v, plain in (
            ("stride", shape.stride, (1,) * len(shape.stride)),
            ("padding", shape.padding, (0,) * len(shape.kernel_size)),
            ("dilation", shape.dilation, (1,) * len(shape.dilation)),
            ("groups", shape.groups, 1),
            ("outer", shape.outer, None),
        )
        if v != plain
    )
    size = "x".join(map(str, shape.kernel_size))
    return f"{name}{len(shape.kernel_size)}d({shape.in_channels}, {shape.out_channels}, {size}{extra})"


def check_requirements(found: Report, needed: list[str]) -> None:
    """Raise where something that was required is not so."""
    left: list[str] = []
    if "no_batchnorm" in needed and found.norms[1]:
        left.append(f"{found.norms[1]} batch normalizations are left")
    if "no_refusals" in needed and found.refusals:
        left.append(f"{len(found.refusals)} sites were refused")
    if "all_traced" in needed and found.untraced:
        left.append(f"{len(found.untraced)} modules could not be followed: {', '.join(list(found.untraced)[:3])}")
    if left:
        reasons = "; ".join(str(r) for r in found.refusals[:5])
        raise RequirementError(f"{'; '.join(left)}. Nothing was changed. {reasons}")
