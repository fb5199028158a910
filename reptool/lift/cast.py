"""Casts of a value: ``x.to(dtype)`` holds the numbers that `x` holds, as long as both dtypes are floating-point ones.

A map is the same in every dtype, and its layer computes in one. So a cast is the identity, and a region with one that
changes a dtype stands where what is read, what is given and the layer are of the same dtype (`surgery.placement`). For
an input of another dtype than the one shown it would be no identity: that dtype is checked (`rewrite.kind_checks`).
"""

from __future__ import annotations

import torch
from torch import fx

from reptool.algebra.kernel import identity
from reptool.ir.kinds.casts import cast_target
from reptool.lift.reading import Context, Lifted, fixed, source_of


def cast(node: fx.Node, ctx: Context) -> Lifted:
    """``to``, ``type``, ``float`` and the like of a value, with a dtype alone."""
    target = cast_target(node)
    source = source_of(node, node.args[0], ctx) if target is not None else None
    if source is None:
        return None
    before, after = ctx.dtype(source), _dtype(target, ctx)
    if before is None or after is None or not (before.is_floating_point and after.is_floating_point):
        return None
    return fixed(node, source, identity(), paradigm="identity" if before == after else "cast")


def _dtype(target: torch.dtype | fx.Node | None, ctx: Context) -> torch.dtype | None:
    if not isinstance(target, fx.Node):
        return target
    if target.target is getattr and isinstance(target.args[0], fx.Node) and not target.meta["const"]:
        read = ctx.read(target, target.args[0])
        return None if read is None else ctx.dtype(read)
    found = ctx.constant(target) if target.meta["const"] else None
    return found if isinstance(found, torch.dtype) else None
