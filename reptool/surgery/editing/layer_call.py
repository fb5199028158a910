"""The call of a functional layer that stands for a region, and the rank that its input must have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptool.ir.ops import Affine, View
from reptool.ir.trace import Event
from reptool.lift.layers.deformable import BIAS, WEIGHT
from reptool.runtime.hooks import guarded_rank
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced

_FUNCTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def call_of(traced: Traced, site: Site) -> tuple[Any, tuple[str, str | None], dict[str, Any]]:
    """The function, the attribute names of its weight and bias, and its other arguments."""
    shape, n = site.shape, len(site.shape.kernel_size)
    names = site.names
    cast = {"cast": 1 + site.region.form.shape.biased} if traced.found.facts.follows(site.carrier) else {}
    if shape.kind == "linear":
        return nn.functional.linear, names, cast
    if shape.kind == "deformable":
        return site.carrier.target, names, {"beside": {"weight": WEIGHT, "bias": BIAS}}
    if shape.kind == "transposed":
        return _TRANSPOSED[n], names, {
            **cast,
            "stride": shape.stride, "padding": shape.padding, "output_padding": shape.output_padding,
            "groups": shape.groups, "dilation": shape.dilation,
        }  # fmt: skip
    padding: Any = shape.padding
    outer = None if shape.outer is None else [p for pair in reversed(shape.outer) for p in pair]
    mode = shape.outer_mode
    if shape.padding_mode != "zeros":
        outer = [p for q in reversed(shape.padding) for p in (q, q)]  # type: ignore[misc]
        padding, mode = (0,) * n, shape.padding_mode
    return _FUNCTIONS[n], names, {
        **cast,
        "stride": shape.stride, "padding": padding, "dilation": shape.dilation, "groups": shape.groups,
        **({} if outer is None else {"outer": outer, "outer_mode": mode}),
    }  # fmt: skip


def rank_held(traced: Traced, site: Site) -> int | None:
    """The rank of its input for which alone a region is right; behind a view to sizes in a list, every one is."""
    if site.region.form.joined is not None:
        return None  # what hands on the values looks after that
    rank, ops, position = traced.found.facts.rank(site.region.root), traced.found.ops, traced.reads.position
    sized = [position[n] for n in site.region.form.ops if isinstance(v := ops[n], View) and v.given is not None]
    for node in site.region.form.ops:
        op = ops[node]
        if rank is None and any(p < position[node] for p in sized):
            continue
        earlier = guarded_rank(node.meta["module"]) if node.op == "call_module" else None
        held = traced.found.ranks.get(node) or (op.rank_guard if isinstance(op, Affine) else None) or earlier
        if held is not None:
            return rank or held
    return None


def takes(site: Site) -> str | None:
    """The module whose call gives its first argument to a functional layer's region."""
    event: Event | None = site.carrier.meta["event"]
    while event is not None and not (event.method == "forward" and site.region.root in event.args[:1]):
        event = event.parent
    return None if event is None else event.path
