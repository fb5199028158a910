"""Transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from reptool._weights import exact_tensors, has_computed_weight, shape_of_weight
from reptool.kernel import Axis, Border, Channels, Kernel
from reptool.lift.convolutions import bias_fits
from reptool.lift.reading import Context, Lifted, arguments, cone_of, exact_pair, ints, is_computed, shape_of, source_of
from reptool.ops import Affine
from reptool.refusal import Code, Refusal


def _transposed_kernel(
    node: fx.Node,
    source: fx.Node | None,
    geometry: tuple[Any, ...],
    weight_shape: Sequence[int],
    groups: int,
    biased: bool,
    values: Callable[[], tuple[Tensor, Tensor | None]],
    owners: tuple[str, ...],
    computed: bool,
) -> Lifted:
    if source is None:
        return None
    stride, padding, output_padding, dilation = geometry
    size = tuple(weight_shape[2:])
    n = len(size)
    i, o = weight_shape[0], weight_shape[1] * groups
    channels = Channels.grouped(i, o, groups)

    def rows() -> tuple[Tensor, Tensor | None]:
        weight, bias = values()
        w = weight.reshape(groups, i // groups, o // groups, *size).transpose(1, 2).reshape(o, i // groups, *size)
        return w, bias

    if all(s == 1 for s in stride) and not any(output_padding):
        axes = tuple(
            Axis(k, 1, d, d * (k - 1) - p, d * (k - 1) - p) for k, d, p in zip(size, dilation, padding, strict=True)
        )

        def load() -> Kernel:
            w, b = rows()
            return Kernel(channels, axes, w.flip(*range(2, 2 + n)) if n else w, b, b is not None)

        return Affine(source, Kernel(channels, axes, biased=biased), load, owners, layer=True, paradigm="conv", computed=computed)
    axes = tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in size)
    key = (size, tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation))

    def load_transposed() -> Kernel:
        w, b = rows()
        return Kernel(channels, axes, w, b, b is not None, transposed=key)

    shape = Kernel(channels, axes, biased=biased, transposed=key)
    return Affine(source, shape, load_transposed, owners, layer=True, paradigm="conv", computed=computed)


def transposed_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A transposed convolution of torch.nn."""
    assert isinstance(module, nn.modules.conv._ConvTransposeNd)
    n = len(module.kernel_size)
    geometry = tuple(ints(v, n) for v in (module.stride, module.padding, module.output_padding, module.dilation))
    if any(g is None for g in geometry) or module.padding_mode != "zeros":
        return None
    shape = shape_of_weight(module)
    if len(shape) != n + 2 or not bias_fits(module, shape[1] * module.groups):
        return None
    return _transposed_kernel(
        node, source_of(node, node.args[0], ctx), geometry, shape, module.groups, module.bias is not None,
        lambda: exact_tensors(module, "weight", "bias"), (str(node.target),), has_computed_weight(module),
    )  # fmt: skip


def transposed_function(node: fx.Node, ctx: Context) -> Lifted:
    """``conv_transpose1d`` to ``conv_transpose3d`` with a constant weight."""
    given = arguments(
        node,
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
    )
    if given is None or not isinstance(given["weight"], fx.Node):
        return None
    weight, bias = given["weight"], given["bias"]
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = shape_of(ctx.constant(weight))
    if shape is None or type(given["groups"]) is not int:
        return None
    geometry = tuple(ints(given[k], len(shape) - 2) for k in ("stride", "padding", "output_padding", "dilation"))
    if any(g is None for g in geometry):
        return None
    return _transposed_kernel(
        node, source_of(node, given["input"], ctx), geometry, shape, given["groups"], bias is not None,
        lambda: exact_pair(ctx, weight, bias), cone_of(ctx, weight, bias), is_computed(weight, bias),
    )  # fmt: skip
