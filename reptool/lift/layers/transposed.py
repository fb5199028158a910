"""Transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx, nn

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.ir.computed_weights import exact_tensors, has_computed_weight, shape_of_weight
from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine
from reptool.lift.layers.convolutions import bias_fits, convolved
from reptool.lift.reading import Context, Lifted, arguments, cone_of, exact_pair, ints, is_computed, shape_of, source_of
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
    sized: bool = False,
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

    if all(s == 1 for s in stride) and not any(output_padding) and not sized:
        axes = tuple(
            Axis(k, 1, d, d * (k - 1) - p, d * (k - 1) - p) for k, d, p in zip(size, dilation, padding, strict=True)
        )

        def load() -> Kernel:
            w, b = rows()
            return Kernel(channels, axes, w.flip(*range(2, 2 + n)) if n else w, b, b is not None)

        return Affine(
            source, Kernel(channels, axes, biased=biased), load, owners, layer=True, paradigm="conv", computed=computed
        )
    axes = tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in size)
    key = (size, tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation))

    def load_transposed() -> Kernel:
        w, b = rows()
        return Kernel(channels, axes, w, b, b is not None, transposed=key)

    shape = Kernel(channels, axes, biased=biased, transposed=key)
    return Affine(source, shape, load_transposed, owners, layer=True, paradigm="conv", computed=computed)


def asks_for_size(node: fx.Node) -> bool:
    """Whether a transposed convolution is called with the size that it is to give.

    What it adds at the end of each axis then depends on the size of its input; its weight and bias do not.
    """
    if node.op != "call_module" or not isinstance(node.meta.get("module"), nn.modules.conv._ConvTransposeNd):
        return False
    return (len(node.args) == 2 and not node.kwargs) or (len(node.args) == 1 and set(node.kwargs) == {"output_size"})


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
        asks_for_size(node),
    )  # fmt: skip


def transposed_function(node: fx.Node, ctx: Context) -> Lifted:
    """``conv_transpose1d`` to ``conv_transpose3d`` with a constant weight."""
    given = arguments(
        node,
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
    )
    return None if given is None else _transposed(node, given, ctx)


def _transposed(node: fx.Node, given: dict[str, Any], ctx: Context) -> Lifted:
    weight, bias = given.get("weight"), given["bias"]
    if not isinstance(weight, fx.Node):
        return None
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = shape_of(ctx.constant(weight))
    if shape is None or type(given["groups"]) is not int:
        return None
    geometry = tuple(ints(given[k], len(shape) - 2) for k in ("stride", "padding", "output_padding", "dilation"))
    if any(g is None for g in geometry):
        return None
    return _transposed_kernel(
        node, source_of(node, given.get("input"), ctx), geometry, shape, given["groups"], bias is not None,
        lambda: exact_pair(ctx, weight, bias), cone_of(ctx, weight, bias), is_computed(weight, bias),
    )  # fmt: skip


_GENERAL = ("input", "weight", "bias", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
_SWITCHES = ("benchmark", "deterministic", "cudnn_enabled", "allow_tf32")


def convolution(node: fx.Node, ctx: Context) -> Lifted:
    """``torch.convolution``, which is every convolution, transposed or not, along as many axes as its weight has."""
    names = (*_GENERAL, *_SWITCHES) if name_of(node) == "_convolution" else _GENERAL
    given = arguments(node, names, {"bias": None})
    if given is None or any(n not in given for n in _GENERAL) or type(given["transposed"]) is not bool:
        return None
    return _transposed(node, given, ctx) if given["transposed"] else convolved(node, given, ctx)
