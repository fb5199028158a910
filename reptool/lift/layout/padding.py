"""Paddings, and paddings whose sides are overwritten with a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.ir.decisions import decided
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Fill
from reptool.lift.constants import along_channels
from reptool.lift.reading import Context, Lifted, arguments, cone_of, owned, source_of


def _pad_axes(pad: Sequence[int], border: Border) -> tuple[Axis, ...]:
    pairs = list(zip(pad[::2], pad[1::2], strict=True))[::-1]
    return tuple(Axis(1, 1, 1, a, e, border) for a, e in pairs)


def _pad(node: fx.Node, source: fx.Node | None, pad: Any, mode: str, value: Any, ctx: Context) -> Lifted:
    if not isinstance(pad, (tuple, list)) or not all(type(p) is int for p in pad) or len(pad) % 2 or source is None:
        return None
    if mode == "constant":
        border = Border.ZEROS if value in (None, 0, 0.0) else Border.CONSTANT
    else:
        if mode not in ("reflect", "replicate", "circular") or any(p < 0 for p in pad):
            return None
        border = Border(mode)
    axes = _pad_axes(pad, border)
    n = _axes_behind_channels(source, len(axes), ctx)
    if n is None:
        return None
    axes = (Axis(),) * (n - len(axes)) + axes
    constant = torch.full((1,), float(value), dtype=torch.float64) if border is Border.CONSTANT else None
    weight = torch.ones(1, 1, *[1] * n, dtype=torch.float64)
    kernel = Kernel(None, axes, weight, border_value=constant)
    return Affine(source, Kernel(None, axes, border_value=constant), lambda: kernel, paradigm="padding")


def _axes_behind_channels(source: fx.Node, least: int, ctx: Context) -> int | None:
    """Axes behind dimension 1, when there are at least `least` of them."""
    rank = ctx.rank(source)
    if rank is None:
        return least
    return ctx.axes(rank) if ctx.axes(rank) >= least else None


def pad_function(node: fx.Node, ctx: Context) -> Lifted:
    """``pad``, in every mode."""
    given = arguments(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": None})
    if given is None or not isinstance(given["mode"], str) or isinstance(given["value"], fx.Node):
        return None
    return _pad(node, source_of(node, given["input"], ctx), given["pad"], given["mode"], given["value"], ctx)


def pad_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A padding of torch.nn."""
    name = type(module).__name__
    mode = (
        "reflect"
        if "Reflection" in name
        else "replicate"
        if "Replication" in name
        else "circular"
        if "Circular" in name
        else "constant"
    )
    value = getattr(module, "value", None) if "Constant" in name else None
    return owned(_pad(node, source_of(node, node.args[0], ctx), module.padding, mode, value, ctx), node)


def fill(node: fx.Node, ctx: Context) -> Lifted:
    """``padded[:, :, :a] = c``: the sides of a zero padding overwritten one after another with one constant."""
    target, key, value = node.args
    before = source_of(node, target, ctx)
    if before is None or not isinstance(key, tuple) or not isinstance(value, fx.Node) or not value.meta["const"]:
        return None
    sides: list[tuple[Any, fx.Node]] = [(key, value)]
    at = before
    while name_of(at) == "setitem":
        sides.append((at.args[1], at.args[2]))  # type: ignore[arg-type]
        earlier = ctx.read(at, at.args[0])  # type: ignore[arg-type]
        if earlier is None:
            return None
        at = earlier
    pad = ctx.ops.get(at)
    if not isinstance(pad, Affine) or pad.paradigm != "padding" or pad.shape.axes is None:
        return None
    if any(a.border is not Border.ZEROS or a.before < 0 or a.after < 0 for a in pad.shape.axes):
        return None
    wanted = {
        (i, side) for i, a in enumerate(pad.shape.axes) for side, p in (("before", a.before), ("after", a.after)) if p
    }
    covered = {_side(k, pad.shape.axes) for k, _ in sides}
    if None in covered or not covered <= wanted:
        return None
    if covered != wanted:
        return Fill(before)
    constants = [ctx.exact(v) for _, v in sides]
    shown = [along_channels(ctx.constant(v), e, at, ctx) for (_, v), e in zip(sides, constants, strict=True)]
    if not all(isinstance(c, tuple) for c in shown):
        return None
    vectors = [c[1] for c in shown if isinstance(c, tuple)]
    if not decided("same", (node,), lambda: all(torch.equal(v, vectors[0]) for v in vectors), False):
        return None
    axes = tuple(replace(a, border=Border.CONSTANT) if a.reads_outside else a for a in pad.shape.axes)
    kernel = replace(pad.load(), axes=axes, border_value=vectors[0])
    if vectors[0].numel() > 1:
        kernel = replace(replace(kernel, border_value=None).with_channels(vectors[0].numel()), border_value=vectors[0])
    whole = Affine(
        pad.source, kernel.shape_only(), lambda: kernel, cone_of(ctx, *[v for _, v in sides]), paradigm="padding"
    )
    return Fill(before, whole, whole.owners)


def _side(key: Any, axes: Sequence[Axis]) -> tuple[int, str] | None:
    """Which side of a padding a key overwrites, None when it is not exactly one."""
    keys = [k for k in key if k is not Ellipsis]
    if len(keys) != len(key):
        keys = [slice(None)] * (len(axes) + 2 - len(keys)) + keys if key[0] is Ellipsis else keys
    keys = [*keys, *[slice(None)] * (len(axes) + 2 - len(keys))]
    partial = [(i, k) for i, k in enumerate(keys) if k != slice(None)]
    if len(keys) != len(axes) + 2 or len(partial) != 1 or partial[0][0] < 2 or not isinstance(partial[0][1], slice):
        return None
    position, k = partial[0][0] - 2, partial[0][1]
    axis = axes[position]
    if k.step not in (None, 1):
        return None
    if k.start in (None, 0) and k.stop == axis.before:
        return position, "before"
    return (position, "after") if k.start == -axis.after and k.stop is None else None
