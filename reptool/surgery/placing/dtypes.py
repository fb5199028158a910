"""Dtypes around a region: of a region with casts, what it reads, gives and computes with is of one dtype."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from reptool.ir.kinds.asked import asked_by, ranks_in
from reptool.ir.kinds.casts import cast_target
from reptool.ir.ops import Affine
from reptool.ir.trace import Question
from reptool.plan.select import Region
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def dtypes_refused(traced: Traced, site: Site) -> Refusal | None:
    """Whether a region that changes dtypes gives another one than its layer, or rounds to fewer digits."""
    assert site.place is not None
    facts, own, region = traced.found.facts, site.place.dtype, site.region
    changing = [n for n, op in _casts(traced, region) if op.paradigm == "cast"]
    for node in (region.root, region.value) if changing else ():
        if facts.dtype(node) is not own:
            why = f"{named(node)} is of {facts.dtype(node)}, and the layer in its place of {own}"
            return Refusal(Code.DTYPE, why, (node.name,))
    for node in changing:
        dtype = facts.dtype(node)
        if dtype is None or torch.promote_types(dtype, own) is not dtype:
            return Refusal(Code.DTYPE, f"{named(node)} rounds to {dtype} what a layer of {own} reads", (node.name,))
    return None


def casts_shown(traced: Traced, region: Region) -> list[Question]:
    """Casts of values of which nothing but the example inputs says of what dtype they are, as questions."""
    facts = traced.found.facts
    casts = _casts(traced, region)
    return [asked_by(n, op.paradigm != "cast") for n, op in casts if facts.stated_dtype(op.source) is None]


def ranks_shown(region: Region) -> list[Question]:
    """The ranks that constants of a region are shaped by, as questions."""
    constants = dict.fromkeys(n for op in region.form.ops for n in op.all_input_nodes if n.meta["const"])
    return [question for constant in constants for question in ranks_in(constant)]


def _casts(traced: Traced, region: Region) -> Iterator[tuple[fx.Node, Affine]]:
    for node in region.form.ops:
        op = traced.found.ops[node]
        if isinstance(op, Affine) and cast_target(node) is not None:
            yield node, op
