"""Convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.ir.computed_weights import exact_tensors, has_computed_weight, shape_of_weight
from reptool.ir.ops import Affine
from reptool.lift.reading import (
    Context,
    Lifted,
    arguments,
    cone_of,
    exact_pair,
    ints,
    is_computed,
    shape_of,
    source_of,
)
from reptool.refusal import Code, Refusal


def _conv_axes(
    size: Sequence[int], stride: Any, padding: Any, dilation: Any, mode: str = "zeros"
) -> tuple[Axis, ...] | None:
    n = len(size)
    s, d = ints(stride, n), ints(dilation, n)
    if s is None or d is None:
        return None
    if padding == "valid":
        pads = [(0, 0)] * n
    elif padding == "same":
        total = [di * (k - 1) for di, k in zip(d, size, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        p = ints(padding, n)
        if p is None:
            return None
        pads = [(q, q) for q in p]
    try:
        border = Border(mode)
    except ValueError:
        return None
    return tuple(Axis(k, si, di, a, e, border) for k, si, di, (a, e) in zip(size, s, d, pads, strict=True))


def layer_of(
    node: fx.Node,
    source: fx.Node | None,
    axes: tuple[Axis, ...] | None,
    weight_shape: Sequence[int],
    groups: int,
    biased: bool,
    values: Callable[[], tuple[Tensor, Tensor | None]],
    owners: tuple[str, ...],
    paradigm: str = "conv",
    computed: bool = False,
) -> Lifted:
    """A layer with a weight of shape ``[out, in / groups, ...]``; `values` gives it and the bias in float64."""
    if source is None or axes is None or weight_shape[0] % groups:
        return None
    channels = Channels.grouped(weight_shape[1] * groups, weight_shape[0], groups)
    shape = Kernel(channels, axes, biased=biased)

    def load() -> Kernel:
        weight, bias = values()
        return Kernel(channels, axes, weight, bias, bias is not None)

    return Affine(source, shape, load, owners, layer=True, paradigm=paradigm, computed=computed)


def bias_fits(module: nn.Module, count: int) -> bool:
    """Whether a layer has no bias, or one number for each of `count` outputs."""
    bias = getattr(module, "bias", None)
    return bias is None or (isinstance(bias, Tensor) and tuple(bias.shape) == (count,))


def conv_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A convolution of torch.nn, or a subclass that convolves as it does."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    stock = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
    if not any(type(module)._conv_forward is c._conv_forward for c in stock):
        return None
    weight = shape_of_weight(module)
    if len(weight) != len(module.kernel_size) + 2 or not bias_fits(module, weight[0]):
        return None
    if module.padding_mode != "zeros" and module.padding == "same" and weight[2:] != module.kernel_size:
        return None  # the module pads by the size that it was made with
    axes = _conv_axes(weight[2:], module.stride, module.padding, module.dilation, module.padding_mode)
    return layer_of(
        node, source_of(node, node.args[0], ctx), axes, weight, module.groups, module.bias is not None,
        lambda: exact_tensors(module, "weight", "bias"), (str(node.target),), computed=has_computed_weight(module),
    )  # fmt: skip


def conv_function(node: fx.Node, ctx: Context) -> Lifted:
    """``conv1d`` to ``conv3d`` with a constant weight."""
    given = arguments(
        node,
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    )
    return None if given is None else convolved(node, given, ctx)


def convolved(node: fx.Node, given: dict[str, Any], ctx: Context) -> Lifted:
    """A convolution with these arguments."""
    weight, bias = given.get("weight"), given["bias"]
    if not isinstance(weight, fx.Node):
        return None
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = shape_of(ctx.constant(weight))
    if shape is None or type(given["groups"]) is not int:
        return None
    axes = _conv_axes(shape[2:], given["stride"], given["padding"], given["dilation"])
    return layer_of(
        node, source_of(node, given.get("input"), ctx), axes, shape, given["groups"], bias is not None,
        lambda: exact_pair(ctx, weight, bias), cone_of(ctx, weight, bias), "conv", is_computed(weight, bias),
    )  # fmt: skip


def linear_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A linear layer."""
    assert isinstance(module, nn.Linear)
    weight = shape_of_weight(module)
    if len(weight) != 2 or not bias_fits(module, weight[0]):
        return None
    return layer_of(
        node, source_of(node, node.args[0], ctx), (), weight, 1,
        module.bias is not None, lambda: exact_tensors(module, "weight", "bias"), (str(node.target),), "linear",
        has_computed_weight(module),
    )  # fmt: skip


def linear_function(node: fx.Node, ctx: Context) -> Lifted:
    """``linear`` with a constant weight."""
    given = arguments(node, ("input", "weight", "bias"), {"bias": None})
    if given is None or not isinstance(given["weight"], fx.Node):
        return None
    weight, bias = given["weight"], given["bias"]
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = shape_of(ctx.constant(weight))
    if shape is None or len(shape) != 2:
        return None
    return layer_of(
        node, source_of(node, given["input"], ctx), (), shape, 1, bias is not None,
        lambda: exact_pair(ctx, weight, bias), cone_of(ctx, weight, bias), "linear", is_computed(weight, bias),
    )  # fmt: skip
