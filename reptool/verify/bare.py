"""Verification of norms that lost their scale and shift, against the norms themselves, on a made-up input.

``view(norm(x))`` has to be ``scale * view(bare(x)) + shift`` at each place to which scale and shift went.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.aliasing import Reads
from reptool.ir.computed_weights import set_bare
from reptool.models.copies import full_copy
from reptool.passages.own_affines import Behind
from reptool.plan.inference.facts import Facts
from reptool.verify.originals import Originals, read_by

SIZES = (5, 4, 3)
MAX_ELEMENTS = 2**22


def measure_bare(behind: Behind, facts: Facts, reads: Reads) -> float:
    """Error of a norm without its scale and shift, with them where they stand now.

    Returns:
        The largest error in float64, relative to the largest value; 0 where the norm runs on no input of its own.
    """
    norm, originals = behind.norm, Originals(facts, reads)
    x = torch.randn(_shape(behind, facts), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = sorted(behind.passed, key=reads.position.__getitem__)
    worst = 0.0
    with torch.no_grad():
        try:
            whole: dict[fx.Node, Any] = {norm: originals.run(norm, {read_by(norm, reads): x})}
            bare: dict[fx.Node, Any] = {norm: _bare(behind, originals, x)}
            for memo in (whole, bare):
                for node in order:
                    memo[node] = originals.run(node, memo)
        except (RuntimeError, ValueError):
            return 0.0  # it was written for another size
        for at, node in behind.nodes.items():
            got = originals.run(node, {at: bare[at]})
            if got.shape != whole[at].shape:
                return float("inf")
            worst = max(worst, float((got - whole[at]).abs().max()) / (float(whole[at].abs().max()) + 1e-300))
    return worst


def _bare(behind: Behind, originals: Originals, x: Tensor) -> Any:
    norm = behind.norm
    if behind.bare.module:
        module: nn.Module = full_copy(norm.meta["module"]).double().cpu()
        set_bare(module)
        return module(x)
    given = {n: originals.facts.exact(n) if n.meta["const"] else x for n in _nodes(behind)}
    args: Any = fx.node.map_arg(behind.bare.args, given.__getitem__)
    kwargs: Any = fx.node.map_arg(behind.bare.kwargs, given.__getitem__)
    return originals.facts.recorder.known.run(norm, args, kwargs)


def _nodes(behind: Behind) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg((behind.bare.args, behind.bare.kwargs), found.append)
    return found


def _shape(behind: Behind, facts: Facts) -> tuple[int, ...]:
    """A shape that the norm may be given: the one that was seen, or one of its rank and channels."""
    seen = facts.shape(behind.norm) if behind.passed else None
    if seen is not None and prod(seen) <= MAX_ELEMENTS:
        return seen
    shape = behind.bare.op.shape
    axes = len(shape.axes or ())
    rank = facts.rank(behind.norm) or max(axes + 2, 3)
    return (*(2, 3, 4)[: rank - 1 - axes], shape.out_channels or 1, *SIZES[:axes])
