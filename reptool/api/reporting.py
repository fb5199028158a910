"""From a plan and its measurements to the report, and the requirements on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from reptool.algebra.side_by_side import kernel_of_each, upsampling
from reptool.errors import InputError, RequirementError
from reptool.frontends.given import names_itself
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.plan.forms import Form
from reptool.plan.resolutions.joined import Joined
from reptool.plan.rules import rules_of
from reptool.pysource.places import placed
from reptool.refusal import Refusal
from reptool.report.counting import Shape, of_layer
from reptool.report.data import Report
from reptool.report.fields import FusedRegion
from reptool.report.norms_run import running
from reptool.report.picture.graph import graphs_of
from reptool.report.totals import is_layer, totals
from reptool.report.words import counted
from reptool.surgery.site import Site
from reptool.surgery.units import Plan, Unit, layer_name
from reptool.verify.measure import Measured
from reptool.verify.regions import Checked
from reptool.verify.whole_model import Reference

KEY = "_reptool_report"


def report_of(model: nn.Module, plan: Plan, measured: dict[str, Checked], reference: Reference | None = None) -> Report:
    """The report on a plan and what was measured.

    Args:
        model: the model that was planned.
        plan: everything that was worked out for it.
        measured: the errors of its regions.
        reference: one run of the model itself.
    """
    out = Report(type(model).__name__, untraced=dict(plan.untraced), refusals=list(plan.unseen))
    found = running(model, plan)
    out.norms, out.norms_left, out.unused = (len(found.before), len(found.after)), found.after, found.unused
    saved: list[int | None] = []
    for unit in plan.units:
        out.specialized += unit.questions
        _add_fallbacks(out, unit)
        out.refusals += placed(unit.trace.graph, unit.refusals.values())
        named: set[str] = set()
        for site in unit.surgery.sites:
            region = _fused(unit, site, measured.get(unit.prefix, {}).get(site, (None,))[0])
            out.impulses.update({p: plan.impulses[p] for p in region.absorbed if p in plan.impulses})
            saved.append(_saved(unit, site))
            if region.layer not in named:
                named.add(region.layer)
                out.regions.append(region)
                out.names[region.layer] = region.absorbed
    out.graphs = graphs_of(plan, {r.layer: r.kind for r in out.regions})
    layers, parameters = totals(model, plan)
    out.layers = (sum(map(is_layer, model.modules())), layers)
    out.parameters = (sum(p.numel() for p in model.parameters()), parameters)
    out.refusals += found.refusals
    if reference is not None:
        out.changing, before = reference.changing, reference.multiplications
        if before is not None:
            out.multiplications = (before, None if None in saved else before - sum(n for n in saved if n is not None))
    return out


def _fused(unit: Unit, site: Site, errors: Measured | None) -> FusedRegion:
    """What the report says of one region."""
    region, form = site.region, site.region.form
    owners = (o for n in sorted(form.ops, key=unit.reads.position.__getitem__) for o in unit.found.ops[n].owners)
    shown = _on_examples(unit, site)
    return FusedRegion(
        layer_name(unit, site),
        str(site.shape),
        [".".join(p for p in (unit.prefix, o) if p) for o in dict.fromkeys(owners)],
        sorted(rules_of(form, unit.found)),
        shown or (region.before.multiplications, region.after.multiplications),
        (region.before.total, region.after.total),
        None if errors is None else errors.exact,
        None if errors is None else errors.cast,
        0 if errors is None else errors.sizes,
        None if errors is None else errors.lost,
        "nominal" if shown is None else "example_inputs",
    )


def _saved(unit: Unit, site: Site) -> int | None:
    """The multiplications that a region saves on the example inputs; None where that is not known."""
    shown = _on_examples(unit, site)
    ops = (unit.found.ops[n] for n in site.region.form.ops)
    if shown is None or unit.prefix or any(isinstance(op, Affine) and op.computed for op in ops):
        return None  # what computes a weight multiplies as well
    return shown[0] - shown[1]


def keep_report(deployed: Any, found: Report) -> None:
    """Keep the report of a program with it: as an attribute, or among what an `onnx_ir.Model` holds beside the file."""
    if isinstance(deployed, (nn.Module, ExportedProgram)):
        deployed.__dict__[KEY] = found
    elif hasattr(deployed, "meta"):
        deployed.meta[KEY] = found


@names_itself
def report(deployed: Any) -> Report:
    """What `deploy` did to a model it returned, with the errors it measured.

    Args:
        deployed: a model or program returned by `deploy`.

    Raises:
        InputError: it was not deployed by reptool, or is a `ModelProto`, which holds nothing beside the model.

    >>> import reptool
    >>> model = reptool.deploy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    >>> report(model).norms
    (1, 0)
    """
    meta = getattr(deployed, "meta", None)
    found = getattr(deployed, KEY, None) or (meta.get(KEY) if isinstance(meta, Mapping) else None)
    if not isinstance(found, Report):
        raise InputError(
            f"this {type(deployed).__name__} was not returned by reptool.deploy; use reptool.explain for a plan"
        )
    return found


def _on_examples(unit: Unit, site: Site) -> tuple[int, int] | None:
    """Multiplications of a region and of its layer on the example inputs; None where they are not known."""
    region = site.region

    def shape(node: fx.Node) -> tuple[int, ...] | None:
        while node.meta.get("share") or name_of(node) == "setitem":  # of the shape of the part, of what is written
            node = node.all_input_nodes[0]
        return unit.facts.shape(node)

    before = 0
    for node in region.form.ops:
        op = unit.found.ops[node]
        if not isinstance(op, Affine) or not op.layer or node in unit.alive:
            continue
        read, written = shape(op.source), shape(node)
        if read is None or written is None:
            return None
        if op.work is None:
            before += of_layer(op.shape, read, written)
        else:
            before += int(op.work.multiplications * prod(written) / (op.shape.out_channels or 1))
    read, written = shape(region.root), shape(region.value)
    if region.form.around and read is not None:
        size = read[2:]
        for resampling in region.form.around[: region.form.at]:
            size = resampling.out_size(size)
        written = (read[0], region.form.shape.out_channels or 1, *size)
    joined = region.form.joined
    if joined is not None and written is not None:
        after = _of_parts(region.form, joined, written, [shape(v) for v in joined.values])
        return None if after is None else (before, after)
    return None if read is None or written is None else (before, of_layer(region.form.shape, read, written))


def _of_parts(form: Form, joined: Joined, written: Shape, read: Sequence[Shape | None]) -> int | None:
    """Multiplications of the layers of all resolutions; None where a size is not known."""
    kernels, count = kernel_of_each(form.shape, joined.parts), 0
    for kernel, part in zip(() if isinstance(kernels, Refusal) else kernels, joined.parts, strict=True):
        own = read[part.which[0]]
        if own is None:
            return None
        made = written if upsampling(form.shape, part) is None else (own[0], kernel.out_channels or 0, *own[2:])
        count += of_layer(kernel, (own[0], kernel.in_channels or 0, *own[2:]), made)
    return count


def _add_fallbacks(out: Report, unit: Unit) -> None:
    kept = list(unit.surgery.keeping.values())
    out.kept = (out.kept[0] + sum(k.weights for k in kept), out.kept[1] + sum(k.size for k in kept))
    if unit.surgery.fallbacks is not None:
        for (path, method), fallback in unit.surgery.fallbacks.found.items():
            name = ".".join(p for p in (unit.prefix, path) if p) or "<root>"
            out.fallbacks[f"{name}.{method}"] = [str(g) for g in fallback.guards]


def check_requirements(found: Report, needed: list[str]) -> None:
    """Raise where something that was required is not so, with every path and its reason."""
    lines: list[str] = []
    if "no_batchnorm" in needed and found.norms_left:
        lines.append(f"{counted(len(found.norms_left), 'batch normalization')} left:")
        lines += [f"  {path}: {_reasons(found, path) or 'the reason is not known'}" for path in found.norms_left]
    if "no_refusals" in needed and found.refusals:
        lines.append(f"{counted(len(found.refusals), 'refusal')}:")
        lines += [f"  {', '.join(r.places()) or '<root>'}: {r.code.value}: {r.sentence}" for r in found.refusals]
    if "all_traced" in needed and found.untraced:
        lines.append(f"{counted(len(found.untraced), 'module')} that could not be followed:")
        lines += [f"  {path or '<root>'}: {why}" for path, why in found.untraced.items()]
    if lines:
        raise RequirementError(
            "\n".join([f"{found.model} does not meet what was required; nothing was changed", *lines])
        )


def _reasons(found: Report, path: str) -> str:
    """Why the norm at a path was left."""
    reasons = (f"{r.code.value}: {r.sentence}" for r in found.refusals if path in r.nodes)
    return "; ".join(dict.fromkeys(reasons))
