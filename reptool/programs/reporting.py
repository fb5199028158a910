"""The report on a graph that has no code."""

from __future__ import annotations

from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.plan.rules import rules_of
from reptool.programs.collapse import Collapsed
from reptool.programs.layers import Layer
from reptool.pysource.places import place_of, placed
from reptool.report.data import FusedRegion, Report


def report_on(kind: str, made: Collapsed) -> Report:
    """The report, whose layers have no names yet.

    Args:
        kind: what was given.
        made: what was worked out for it.
    """
    out = Report(kind)
    ops = made.found.ops
    layers = {n for n, op in ops.items() if isinstance(op, Affine) and op.layer}
    norms = [n for n in made.read.trace.graph.nodes if name_of(n) in ("batch_norm", "native_batch_norm")]
    fused = {n for layer in made.layers for n in layer.region.form.ops}
    out.layers = (len(layers), len(layers - fused) + sum(len(layer.pieces) for layer in made.layers))
    moved = {s.norm for s in made.found.spreads}
    left = [n for n in norms if n not in fused | moved]
    out.norms, out.norms_left = (len(norms), len(left)), [place_of(n) for n in left]
    out.refusals = placed(made.read.trace.graph, made.refusals.values())
    position = made.read.reads.position
    for layer in made.layers:
        region = layer.region
        order = sorted(region.form.ops, key=position.__getitem__)
        absorbed = list(dict.fromkeys(o for n in order for o in ops[n].owners))
        errors = layer.errors
        out.regions.append(
            FusedRegion(
                region.value.name,
                str(layer.shape),
                absorbed,
                sorted(rules_of(region.form, made.found)),
                (region.before.multiplications, region.after.multiplications),
                (region.before.total, region.after.total),
                None if errors is None else errors.exact,
                None if errors is None else errors.cast,
                0 if errors is None else errors.sizes,
            )
        )
    return out


def name_layers(report: Report, made: Collapsed, paths: dict[Layer, str]) -> None:
    """Give the regions of a report the names of their layers."""
    for region, layer in zip(report.regions, made.layers, strict=True):
        region.layer = paths[layer]
        report.names[region.layer] = region.absorbed
