"""Sums of values; scales and shifts by constants along the channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from reptool.algebra.compose import compose
from reptool.algebra.kernel import Kernel
from reptool.fusions.shortcut import dirac_kernel
from reptool.ir.ops import Affine, Reduced, Stack, Sum, View
from reptool.lift.constants import along_channels
from reptool.lift.reading import Context, Lifted, arguments, cone_of, is_constant, is_number, source_of, varies
from reptool.refusal import Code, Refusal


def channel_map(
    node: fx.Node,
    source: Any,
    constant: Any,
    ctx: Context,
    make: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    shifts: bool,
    behind: int | None = None,
) -> Lifted:
    """``scale * x + shift`` with scale and shift made from one constant; a vector with so many axes `behind` it."""
    read = source_of(node, source, ctx)
    if read is None:
        return None
    native = ctx.constant(constant) if isinstance(constant, fx.Node) else constant
    if native is None:
        return None  # it cannot be computed, in any precision
    exact = ctx.exact(constant) if isinstance(constant, fx.Node) else constant
    if isinstance(constant, fx.Node) and any(not _one_dtype(n, read, ctx) for n in ctx.taken(constant)):
        return Refusal(Code.DTYPE, "a constant of the dtype of another value; give example_inputs", (node.name,))
    if isinstance(native, Tensor) and native.dim() and not ctx.taken(constant) and ctx.unsure(read):
        return Refusal(Code.DTYPE, "a constant behind a layer of any dtype; give example_inputs", (node.name,))
    if behind is not None:
        native, exact = (v.reshape(-1, *[1] * behind) for v in (native, exact))
    found = along_channels(native, exact, read, ctx)
    if found is None or isinstance(found, Refusal):
        return found.at(node.name) if isinstance(found, Refusal) else None
    shape, vector = found
    count = vector.shape[0]
    scale, shift = make(vector)
    n = len(shape.axes or ())
    pick = dirac_kernel(count, [1] * n, count).reshape(count, 1, *[1] * n)
    pick = pick.to("meta") if scale.is_meta or (shift is not None and shift.is_meta) else pick
    weight = pick * scale.reshape(-1, *[1] * (n + 1)).to(pick)
    kernel = Kernel(shape.channels, shape.axes, weight, shift, shifts)
    owners = cone_of(ctx, constant)
    return Affine(read, kernel.shape_only(), lambda: kernel, owners, paradigm="scale", cost=1)


def _one_dtype(like: fx.Node, source: fx.Node, ctx: Context) -> bool:
    """Whether a value has the dtype of one that maps and layers make of it."""
    at: fx.Node | None = source
    while at is not None and at is not like:
        op = ctx.ops.get(at)
        at = op.source if isinstance(op, (Affine, View)) else None
    return at is like


def _operands(node: fx.Node) -> tuple[Any, Any] | None:
    if len(node.args) == 2:
        return node.args[0], node.args[1]
    if len(node.args) == 1 and "other" in node.kwargs:
        return node.args[0], node.kwargs["other"]
    if not node.args and {"input", "other"} <= set(node.kwargs):
        return node.kwargs["input"], node.kwargs["other"]
    return None


def add(sign: float, reverse: bool = False) -> Callable[[fx.Node, Context], Lifted]:
    """``a + sign * alpha * b``: a sum of two values, or a shift by a constant."""

    def handler(node: fx.Node, ctx: Context) -> Lifted:
        if set(node.kwargs) - {"alpha", "other", "input"}:
            return None
        pair = _operands(node)
        alpha = node.kwargs.get("alpha", 1)
        if pair is None or not is_number(alpha):
            return None
        a, b = reversed(pair) if reverse else pair
        factor = sign * float(alpha)  # type: ignore[arg-type]
        if varies(a) and varies(b):
            if any(n.meta.get("kind") not in ("tensor", "unknown") for n in (a, b)):
                return None
            reads = [source_of(node, a, ctx), source_of(node, b, ctx)]
            if any(r is None for r in reads):
                return None
            return Sum([r for r in reads if r is not None], [None, None if factor == 1.0 else _times(factor)])
        if varies(a) and is_constant(b) and a.meta.get("kind") in ("tensor", "unknown"):
            return channel_map(node, a, b, ctx, lambda v: (torch.ones_like(v), v * factor), True)
        if varies(b) and is_constant(a) and b.meta.get("kind") in ("tensor", "unknown"):
            return channel_map(node, b, a, ctx, lambda v: (torch.full_like(v, factor), v), True)
        return None

    return handler


def stack(node: fx.Node, ctx: Context) -> Lifted:
    """Values stacked along a new axis."""
    given = arguments(node, ("tensors", "dim", "out"), {"dim": 0, "out": None})
    if given is None or given["out"] is not None or type(given["dim"]) is not int:
        return None
    parts = given.get("tensors")
    if not isinstance(parts, (tuple, list)) or not parts or not all(varies(p) for p in parts):
        return None
    reads = [source_of(node, p, ctx) for p in parts]
    return None if any(r is None for r in reads) else Stack([r for r in reads if r is not None], given["dim"])


def reduced(mean: bool) -> Callable[[fx.Node, Context], Lifted]:
    """The sum or mean of stacked values along the axis along which they were stacked."""

    def handler(node: fx.Node, ctx: Context) -> Lifted:
        given = arguments(node, ("input", "dim", "keepdim", "dtype"), {"keepdim": False, "dtype": None})
        read = None if given is None else source_of(node, given["input"], ctx)
        held = None if read is None else ctx.ops.get(read)
        if given is None or read is None or not isinstance(held, Stack):
            return None
        dim = given.get("dim")
        dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
        if type(dim) is not int or dim != held.dim or given["keepdim"] is not False or given["dtype"] is not None:
            return None
        dtypes = [ctx.dtype(s) for s in held.sources]
        if any(d is not None and not d.is_floating_point for d in dtypes):
            return None
        factor = 1.0 / len(held.sources) if mean else 1.0
        maps = [None if factor == 1.0 else _times(factor) for _ in held.sources]
        if len(held.sources) == 1:
            return None
        return Reduced(read, Sum(list(held.sources), maps))

    return handler


def _times(factor: float) -> Kernel:
    return Kernel(None, None, torch.full((1, 1), factor, dtype=torch.float64))


def lerp(node: fx.Node, ctx: Context) -> Lifted:
    """``lerp(a, b, w) = (1 - w) a + w b`` with a constant `w`: a number, or one for each channel."""
    given = arguments(node, ("input", "end", "weight"), {})
    if given is None or len(given) != 3 or not is_constant(given["weight"]):
        return None
    if isinstance(given["weight"], fx.Node):
        return _lerp_channels(node, given["input"], given["end"], given["weight"], ctx)
    reads = [source_of(node, given[k], ctx) for k in ("input", "end")]
    if any(r is None for r in reads):
        return None
    weight = float(given["weight"])
    return Sum([r for r in reads if r is not None], [_times(1.0 - weight), _times(weight)])


def _lerp_channels(node: fx.Node, start: Any, end: Any, weight: fx.Node, ctx: Context) -> Lifted:
    if not (varies(start) and varies(end)):
        return None
    first = channel_map(node, start, weight, ctx, lambda v: (1.0 - v, None), False)
    second = channel_map(node, end, weight, ctx, lambda v: (v, None), False)
    if not isinstance(first, Affine) or not isinstance(second, Affine):
        return first if isinstance(first, Refusal) else second if isinstance(second, Refusal) else None
    return Sum([first.source, second.source], [first.load(), second.load()], first.owners)


def addcmul(node: fx.Node, ctx: Context) -> Lifted:
    """``addcmul(c, x, g, value=v) = c + v g x`` with a constant `g` per channel; `c` a constant or a value."""
    given = arguments(node, ("input", "tensor1", "tensor2", "value"), {"value": 1})
    if given is None or not is_number(given["value"]):
        return None
    a, b, value = given["tensor1"], given["tensor2"], float(given["value"])
    if varies(b):
        a, b = b, a
    return _shifted(node, given["input"], a, b, ctx, lambda v: (v * value, None))


def addcdiv(node: fx.Node, ctx: Context) -> Lifted:
    """``addcdiv(c, x, g, value=v) = c + v x / g`` with a constant `g` per channel; `c` a constant or a value."""
    given = arguments(node, ("input", "tensor1", "tensor2", "value"), {"value": 1})
    if given is None or not is_number(given["value"]):
        return None
    value = float(given["value"])
    return _shifted(node, given["input"], given["tensor1"], given["tensor2"], ctx, lambda v: (value / v, None))


def _shifted(
    node: fx.Node, shift: Any, a: Any, b: Any, ctx: Context, make: Callable[[Tensor], tuple[Tensor, Tensor | None]]
) -> Lifted:
    """``shift + scale(b) a`` with a constant `b`."""
    if not (varies(a) and isinstance(b, fx.Node) and is_constant(b) and isinstance(shift, fx.Node)):
        return None
    scaled = channel_map(node, a, b, ctx, make, False)
    if varies(shift):
        read = source_of(node, shift, ctx)
        if not isinstance(scaled, Affine) or read is None:
            return scaled if isinstance(scaled, Refusal) else None
        return Sum([read, scaled.source], [None, scaled.load()], scaled.owners)
    moved = channel_map(node, a, shift, ctx, lambda v: (torch.ones_like(v), v), True)
    if not isinstance(scaled, Affine) or not isinstance(moved, Affine):
        return scaled if not isinstance(scaled, Affine) else moved
    both = compose(moved.load(), scaled.load())
    if isinstance(both, Refusal):
        return both.at(node.name)
    owners = cone_of(ctx, b, shift)
    return Affine(scaled.source, both.shape_only(), lambda: both, owners, paradigm="scale", cost=1)


def mul(node: fx.Node, ctx: Context) -> Lifted:
    """A value times a constant."""
    pair = _operands(node)
    if pair is None or set(node.kwargs) - {"other", "input"}:
        return None
    a, b = pair
    if varies(b) and is_constant(a):
        a, b = b, a
    if not (varies(a) and is_constant(b)) or a.meta.get("kind") not in ("tensor", "unknown"):
        return None
    return channel_map(node, a, b, ctx, lambda v: (v, None), False)


def div(node: fx.Node, ctx: Context) -> Lifted:
    """A value divided by a constant."""
    pair = _operands(node)
    if pair is None or set(node.kwargs) - {"other", "input"} or not (varies(pair[0]) and is_constant(pair[1])):
        return None
    if pair[0].meta.get("kind") not in ("tensor", "unknown"):
        return None
    return channel_map(node, pair[0], pair[1], ctx, lambda v: (1.0 / v, None), False)


def neg(node: fx.Node, ctx: Context) -> Lifted:
    """A value with its sign changed."""
    if len(node.args) != 1 or node.kwargs or not varies(node.args[0]) or node.args[0].meta.get("kind") != "tensor":  # type: ignore[union-attr]
        return None
    return channel_map(node, node.args[0], -1.0, ctx, lambda v: (v, None), False)


def zero(node: fx.Node, ctx: Context) -> Lifted:
    """``zeros_like(x)``: `x` times zero, which sums are begun with."""
    if len(node.args) != 1 or node.kwargs or not varies(node.args[0]) or node.args[0].meta.get("kind") != "tensor":  # type: ignore[union-attr]
        return None
    return channel_map(node, node.args[0], 0.0, ctx, lambda v: (v, None), False)
