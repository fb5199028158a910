"""Deformable convolutions: a layer whose taps are read at places that data decides.

::

    y[o, p] = b[o] + sum_{c, k} W[o, c, k] * m[k, p] * x[c, p + k + offset[k, p]]

What is sampled does not depend on the weight, so y is affine in its rows and its bias: what stands behind (a norm, a
scale, a pointwise layer) goes into them. What stands in front of it or beside it stays.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.lift.reading import Context, Lifted, cone_of, exact_pair, is_computed, shape_of, source_of
from reptool.refusal import Code, Refusal

NAME = "torchvision::deform_conv2d"
WEIGHT, BIAS = 1, 4
"""Where the operator takes its weight and its bias; it takes no keywords."""


def _is_zeros(node: Any) -> bool:
    """The bias that torchvision makes where a layer has none."""
    return isinstance(node, fx.Node) and not node.meta["const"] and name_of(node) == "zeros"


def deformable(node: fx.Node, ctx: Context) -> Lifted:
    """``torchvision.ops.deform_conv2d`` with a constant weight."""
    if node.kwargs or len(node.args) != 14 or not all(type(a) is int for a in node.args[5:11]):
        return None
    given, weight, offset, mask, bias, *rest = node.args
    source = source_of(node, given, ctx)
    if source is None or not isinstance(weight, fx.Node) or not isinstance(bias, fx.Node):
        return None
    plain = _is_zeros(bias)
    if not weight.meta["const"] or not (plain or bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape, count = shape_of(ctx.constant(weight)), ctx.channels(source, 2) or ctx.expected(source, 2)
    if shape is None or len(shape) != 4:
        return None
    if count is None or count % shape[1] or shape[0] % (count // shape[1]):
        return Refusal(Code.CHANNELS, "how many channels it reads is not known; give example_inputs", (node.name,))
    groups = count // shape[1]
    channels = Channels.grouped(count, shape[0], groups)
    axes = tuple(Axis(k, border=Border.UNKNOWN) for k in shape[2:])
    stride, padding, dilation = (tuple(rest[i : i + 2]) for i in (0, 2, 4))
    geometry = (tuple(shape[2:]), (1, 1), padding, stride, dilation, (node.name, groups))
    held: list[fx.Node] = [weight] if plain else [weight, bias]

    def load() -> Kernel:
        w, b = exact_pair(ctx, weight, None if plain else bias)
        return Kernel(channels, axes, w, b, b is not None, transposed=geometry)

    lifted = Kernel(channels, axes, biased=not plain, transposed=geometry)
    beside = tuple(v for v in (offset, mask) if isinstance(v, fx.Node) and not v.meta["const"])
    return Affine(
        source, lifted, load, cone_of(ctx, *held), layer=True, paradigm="conv", computed=is_computed(*held),
        beside=tuple(ctx.read(node, v) or v for v in beside),
    )  # fmt: skip
