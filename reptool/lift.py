"""Lift: an operation of the captured graph as an affine map, a sum or a concatenation, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool._nodes import name_of
from reptool._weights import exact_tensors, has_computed_weight
from reptool.algebra import compose
from reptool.fusions.avg_pool import avg_pool_kernel
from reptool.fusions.bn_conv import bn_kernel
from reptool.fusions.shortcut import dirac_kernel
from reptool.kernel import Axis, Border, Channels, Kernel, identity
from reptool.ops import Affine, Concat, Fill, Op, Sum, View
from reptool.refusal import Code, Refusal

Lifted = Op | Refusal | None


class Context:
    """What lifting needs to know beyond one node: constants, ranks, channels, reads."""

    def __init__(
        self,
        constant: Callable[[fx.Node], Any],
        exact: Callable[[fx.Node], Any],
        read: Callable[[fx.Node, fx.Node], fx.Node | None],
        rank: Callable[[fx.Node], int | None],
        channels: Callable[[fx.Node, int], int | None],
        cone: Callable[[fx.Node], tuple[str, ...]],
        behind: Callable[[fx.Node], int | None],
        ops: dict[fx.Node, Op],
    ) -> None:
        self.ops = ops
        self.constant, self.exact, self.read, self.cone = constant, exact, read, cone
        self.rank, self.channels, self.behind = rank, channels, behind


def lift(node: fx.Node, ctx: Context) -> Lifted:
    """Read one node.

    Returns:
        An op, a `Refusal` for something that looks foldable and is not, or None for everything else.
    """
    if node.meta["const"]:
        return None
    if node.op == "call_module":
        handler = _module_handler(node.meta.get("module"))
        if handler is None or node.meta.get("kind") == "unknown":
            return None
        if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            return None
        return handler(node, node.meta["module"], ctx)
    if node.op in ("call_function", "call_method"):
        name = name_of(node)
        if node.op == "call_method" and name.startswith("__") and name.endswith("__"):
            name = {"__truediv__": "truediv", "__rsub__": "rsub"}.get(name, name.strip("_"))
        function = FUNCTIONS.get(name)
        return function(node, ctx) if function else None
    return None


# --- helpers --------------------------------------------------------------------------------------------------------
def _read(node: fx.Node, source: Any, ctx: Context) -> fx.Node | None:
    if not isinstance(source, fx.Node) or source.meta["const"]:
        return None
    return ctx.read(node, source)


def _bound(node: fx.Node, names: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None where one is unknown."""
    if len(node.args) > len(names) or any(k not in names for k in node.kwargs):
        return None
    out = dict(defaults)
    out.update(zip(names, node.args, strict=False))
    out.update(node.kwargs)
    return out


def _ints(value: Any, count: int) -> tuple[int, ...] | None:
    if type(value) is int:
        return (value,) * count
    if isinstance(value, (tuple, list)) and all(type(v) is int for v in value):
        if len(value) == 1:
            return (value[0],) * count
        return tuple(value) if len(value) == count else None
    return None


def _affine(node: fx.Node, source: fx.Node | None, shape: Kernel, load: Callable[[], Kernel], **kw: Any) -> Lifted:
    return None if source is None else Affine(source, shape.shape_only(), load, **kw)


def _fixed(node: fx.Node, source: fx.Node | None, kernel: Kernel, **kw: Any) -> Lifted:
    return _affine(node, source, kernel, lambda: kernel, **kw)


# --- convolutions and linear layers ---------------------------------------------------------------------------------
def _conv_axes(
    size: Sequence[int], stride: Any, padding: Any, dilation: Any, mode: str = "zeros"
) -> tuple[Axis, ...] | None:
    n = len(size)
    s, d = _ints(stride, n), _ints(dilation, n)
    if s is None or d is None:
        return None
    if padding == "valid":
        pads = [(0, 0)] * n
    elif padding == "same":
        total = [di * (k - 1) for di, k in zip(d, size, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        p = _ints(padding, n)
        if p is None:
            return None
        pads = [(q, q) for q in p]
    try:
        border = Border(mode)
    except ValueError:
        return None
    return tuple(Axis(k, si, di, a, e, border) for k, si, di, (a, e) in zip(size, s, d, pads, strict=True))


def _layer(
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
    if source is None or axes is None or weight_shape[0] % groups:
        return None
    channels = Channels.grouped(weight_shape[1] * groups, weight_shape[0], groups)
    shape = Kernel(channels, axes, biased=biased)

    def load() -> Kernel:
        weight, bias = values()
        return Kernel(channels, axes, weight, bias, bias is not None)

    return Affine(source, shape, load, owners, layer=True, paradigm=paradigm, computed=computed)


def _conv_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    assert isinstance(module, nn.modules.conv._ConvNd)
    stock = {nn.Conv1d, nn.Conv2d, nn.Conv3d}
    if not any(type(module)._conv_forward is c._conv_forward for c in stock):
        return None
    axes = _conv_axes(module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)
    weight = (module.out_channels, module.in_channels // module.groups)
    return _layer(
        node, _read(node, node.args[0], ctx), axes, weight, module.groups, module.bias is not None,
        lambda: exact_tensors(module, "weight", "bias"), (str(node.target),), computed=has_computed_weight(module),
    )  # fmt: skip


def _conv_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(
        node,
        ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
        {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    )
    if given is None:
        return None
    weight, bias = given["weight"], given["bias"]
    if not isinstance(weight, fx.Node):
        return None
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = _shape(ctx.constant(weight))
    if shape is None or type(given["groups"]) is not int:
        return None
    axes = _conv_axes(shape[2:], given["stride"], given["padding"], given["dilation"])
    return _layer(
        node, _read(node, given["input"], ctx), axes, shape, given["groups"], bias is not None,
        lambda: _exact_pair(ctx, weight, bias), _cone(ctx, weight, bias), "conv", _computed(weight, bias),
    )  # fmt: skip


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _computed(*nodes: Any) -> bool:
    return any(isinstance(n, fx.Node) and n.op != "get_attr" for n in nodes)


def _exact_pair(ctx: Context, weight: fx.Node, bias: Any) -> tuple[Tensor, Tensor | None]:
    return ctx.exact(weight), ctx.exact(bias) if isinstance(bias, fx.Node) else None


def _cone(ctx: Context, *nodes: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(p for n in nodes if isinstance(n, fx.Node) for p in ctx.cone(n)))


def _linear_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    assert isinstance(module, nn.Linear)
    return _layer(
        node, _read(node, node.args[0], ctx), (), (module.out_features, module.in_features), 1, module.bias is not None,
        lambda: exact_tensors(module, "weight", "bias"), (str(node.target),), "linear", has_computed_weight(module),
    )  # fmt: skip


def _linear_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "weight", "bias"), {"bias": None})
    if given is None or not isinstance(given["weight"], fx.Node):
        return None
    weight, bias = given["weight"], given["bias"]
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = _shape(ctx.constant(weight))
    if shape is None or len(shape) != 2:
        return None
    return _layer(
        node, _read(node, given["input"], ctx), (), shape, 1, bias is not None,
        lambda: _exact_pair(ctx, weight, bias), _cone(ctx, weight, bias), "linear", _computed(weight, bias),
    )  # fmt: skip


def _transposed_kernel(
    node: fx.Node,
    source: fx.Node | None,
    geometry: tuple[Any, ...],
    weight_shape: Sequence[int],
    groups: int,
    biased: bool,
    values: Callable[[], tuple[Tensor, Tensor | None]],
    owners: tuple[str, ...],
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

        return Affine(source, Kernel(channels, axes, biased=biased), load, owners, layer=True, paradigm="conv")
    axes = tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in size)
    key = (size, tuple(stride), tuple(padding), tuple(output_padding), tuple(dilation))

    def load_transposed() -> Kernel:
        w, b = rows()
        return Kernel(channels, axes, w, b, b is not None, transposed=key)

    shape = Kernel(channels, axes, biased=biased, transposed=key)
    return Affine(source, shape, load_transposed, owners, layer=True, paradigm="conv")


def _transposed_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    assert isinstance(module, nn.modules.conv._ConvTransposeNd)
    n = len(module.kernel_size)
    geometry = tuple(_ints(v, n) for v in (module.stride, module.padding, module.output_padding, module.dilation))
    if any(g is None for g in geometry) or module.padding_mode != "zeros":
        return None
    shape = (module.in_channels, module.out_channels // module.groups, *module.kernel_size)
    return _transposed_kernel(
        node, _read(node, node.args[0], ctx), geometry, shape, module.groups, module.bias is not None,
        lambda: exact_tensors(module, "weight", "bias"), (str(node.target),),
    )  # fmt: skip


def _transposed_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(
        node,
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1},
    )
    if given is None or not isinstance(given["weight"], fx.Node):
        return None
    weight, bias = given["weight"], given["bias"]
    if not weight.meta["const"] or (isinstance(bias, fx.Node) and not bias.meta["const"]):
        return Refusal(Code.DATA_WEIGHT, "the weight is computed from data at every call", (node.name,))
    shape = _shape(ctx.constant(weight))
    if shape is None or type(given["groups"]) is not int:
        return None
    geometry = tuple(_ints(given[k], len(shape) - 2) for k in ("stride", "padding", "output_padding", "dilation"))
    if any(g is None for g in geometry):
        return None
    return _transposed_kernel(
        node, _read(node, given["input"], ctx), geometry, shape, given["groups"], bias is not None,
        lambda: _exact_pair(ctx, weight, bias), _cone(ctx, weight, bias),
    )  # fmt: skip


# --- normalization --------------------------------------------------------------------------------------------------
def _norm(
    node: fx.Node, source: fx.Node | None, axes: tuple[Axis, ...] | None, channels: int, owners: tuple[str, ...],
    values: Callable[[], tuple[Tensor, Tensor, Tensor | None, Tensor | None]], eps: float, guard: int | None = None,
) -> Lifted:  # fmt: skip
    ch = Channels.grouped(channels, channels, channels)

    def load() -> Kernel:
        n = len(axes or ())
        mean, var, gamma, beta = values()
        weight, bias = bn_kernel(mean, var, gamma, beta, eps, (1,) * n)
        terms = mean.abs() * weight.reshape(channels).abs()
        terms = terms if beta is None else terms + beta.abs()
        return Kernel(ch, axes, weight.reshape(channels, 1, *[1] * n), bias, True, terms)

    shape = Kernel(ch, axes, biased=True)
    return _affine(node, source, shape, load, owners=owners, paradigm="bn", cost=1, rank_guard=guard)


def _norm_axes(
    node: fx.Node, source: fx.Node | None, rank: int | None, ctx: Context
) -> tuple[tuple[Axis, ...], int | None] | Refusal:
    """Axes behind the channels of a norm that works on dimension 1 of its input, and a rank to guard."""
    if rank is None and source is not None:
        rank = ctx.rank(source)
    if rank is None and source is not None and ctx.behind(source) == 0:
        return (), 2  # behind a linear layer, right for [N, C] only: the deployed layer checks
    if rank is None:
        return Refusal(
            Code.RANK_UNKNOWN,
            "whether this norm sees [N, C] or [N, C, L] is not known; give example_inputs",
            (node.name,),
        )
    return (Axis(),) * (rank - 2), None


def _norm_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None or module.running_var is None:
        return Refusal(
            Code.NO_STATISTICS, "a batch norm without running statistics normalizes by its batch", (node.name,)
        )
    if module.training:
        return Refusal(Code.TRAINING_NORM, "a batch norm in training mode under a parent in eval mode", (node.name,))
    source = _read(node, node.args[0], ctx)
    rank = 4 if isinstance(module, nn.BatchNorm2d) else 5 if isinstance(module, nn.BatchNorm3d) else None
    axes = _norm_axes(node, source, rank, ctx)
    if isinstance(axes, Refusal):
        return axes

    def values() -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return exact_tensors(module, "running_mean", "running_var", "weight", "bias")

    return _norm(node, source, axes[0], module.num_features, (str(node.target),), values, module.eps, axes[1])


def _norm_function(node: fx.Node, ctx: Context) -> Lifted:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = _bound(node, names, {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5})
    if given is None:
        return None
    if given["training"] is not False:
        return Refusal(Code.TRAINING_NORM, "a batch norm that normalizes by its batch", (node.name,))
    tensors = [given[k] for k in ("running_mean", "running_var", "weight", "bias")]
    if tensors[0] is None or tensors[1] is None:
        return Refusal(
            Code.NO_STATISTICS, "a batch norm without running statistics normalizes by its batch", (node.name,)
        )
    if any(isinstance(t, fx.Node) and not t.meta["const"] for t in tensors) or type(given["eps"]) is not float:
        return Refusal(Code.DATA_WEIGHT, "the norm's parameters are computed from data", (node.name,))
    source = _read(node, given["input"], ctx)
    axes = _norm_axes(node, source, None, ctx)
    if isinstance(axes, Refusal):
        return axes
    shape = _shape(ctx.constant(tensors[0]))
    if shape is None:
        return None

    def values() -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return tuple(ctx.exact(t) if isinstance(t, fx.Node) else None for t in tensors)  # type: ignore[return-value]

    return _norm(node, source, axes[0], shape[0], _cone(ctx, *tensors), values, given["eps"], axes[1])


# --- pooling, padding, identity -------------------------------------------------------------------------------------
def _pool(node: fx.Node, source: fx.Node | None, n: int, given: dict[str, Any]) -> Lifted:
    size = _ints(given["kernel_size"], n)
    if size is None:
        return None
    stride = size if given["stride"] in (None, ()) else _ints(given["stride"], n)
    padding = _ints(given["padding"], n)
    divisor = given["divisor_override"]
    if stride is None or padding is None or (divisor is not None and type(divisor) is not int):
        return None
    if given["ceil_mode"] and any(s > 1 or p for s, p in zip(stride, padding, strict=True)):
        return Refusal(Code.POOL_GEOMETRY, "an average pooling with ceil_mode divides by what it sees", (node.name,))
    if any(padding) and not given["count_include_pad"] and divisor is None:
        return Refusal(Code.POOL_GEOMETRY, "an average pooling that does not count its padding", (node.name,))
    axes = tuple(Axis(k, s, 1, p, p) for k, s, p in zip(size, stride, padding, strict=True))
    weight = avg_pool_kernel(1, size, 1, divisor)
    return _fixed(node, source, Kernel(None, axes, weight), paradigm="avg_pool", cost=weight.numel())


_POOL_DEFAULTS = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def _pool_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    n = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[
        next(c for c in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d) if isinstance(module, c))
    ]
    given = {k: getattr(module, k, v) for k, v in {**_POOL_DEFAULTS, "kernel_size": None}.items()}
    return _owned(_pool(node, _read(node, node.args[0], ctx), n, given), node)


def _owned(lifted: Lifted, node: fx.Node) -> Lifted:
    """The same op, owned by the module that does it."""
    return replace(lifted, owners=(str(node.target),)) if isinstance(lifted, Affine) else lifted


def _pool_function(n: int) -> Callable[[fx.Node, Context], Lifted]:
    def handler(node: fx.Node, ctx: Context) -> Lifted:
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = _bound(node, names, _POOL_DEFAULTS)
        return None if given is None else _pool(node, _read(node, given["input"], ctx), n, given)

    return handler


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
    return rank - 2 if rank - 2 >= least else None


def _pad_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "pad", "mode", "value"), {"mode": "constant", "value": None})
    if given is None or not isinstance(given["mode"], str) or isinstance(given["value"], fx.Node):
        return None
    return _pad(node, _read(node, given["input"], ctx), given["pad"], given["mode"], given["value"], ctx)


def _pad_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
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
    return _owned(_pad(node, _read(node, node.args[0], ctx), module.padding, mode, value, ctx), node)


def _identity(node: fx.Node, source: Any, ctx: Context) -> Lifted:
    return _fixed(node, _read(node, source, ctx), identity())


def _identity_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    return _identity(node, node.args[0], ctx)


def _dropout_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    return None if module.training else _identity(node, node.args[0], ctx)


def _dropout_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "p", "training", "inplace"), {"p": 0.5, "training": True, "inplace": False})
    if given is None or (given["training"] is not False and given["p"] != 0.0):
        return None
    return _identity(node, given["input"], ctx)


def _passthrough(node: fx.Node, ctx: Context) -> Lifted:
    return _identity(node, node.args[0] if node.args else None, ctx) if not node.kwargs else None


# --- scales, shifts, sums -------------------------------------------------------------------------------------------
def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _along_channels(
    value: Any, exact: Tensor | float, source: fx.Node, ctx: Context
) -> tuple[Kernel, Tensor] | Refusal | None:
    """The shape of a per-channel constant as a kernel, and the constant ``[C]`` (or ``[1]``)."""
    if _is_number(value):
        return Kernel(None, None), torch.full((1,), float(exact), dtype=torch.float64)
    if not isinstance(value, Tensor) or not isinstance(exact, Tensor) or not value.is_floating_point():
        return None
    if value.numel() == 1:
        rank = ctx.rank(source)
        if value.dim() > 1 and (rank is None or value.dim() > rank):
            return None
        return Kernel(None, None), exact.reshape(1)
    wide = [i for i, size in enumerate(value.shape) if size != 1]
    if len(wide) > 1:
        return Refusal(Code.BROADCAST, f"a constant of shape {tuple(value.shape)} varies along more than the channels")
    behind = value.dim() - 1 - wide[0]
    rank = ctx.rank(source)
    if rank is not None and rank < value.dim():
        return None
    if rank is None and value.dim() > (behind + 2 if behind else 1):
        return Refusal(
            Code.RANK_UNKNOWN, f"a constant of shape {tuple(value.shape)} may add axes to a value of unknown rank"
        )
    if rank is not None and behind and behind != rank - 2:
        return Refusal(
            Code.BROADCAST, f"a constant of shape {tuple(value.shape)} varies along an axis that is not the channels"
        )
    count = value.numel()
    known = ctx.channels(source, behind)
    if known is not None and known != count:
        return Refusal(Code.BROADCAST, f"a constant of {count} channels on a value of {known}")
    return Kernel(Channels.grouped(count, count, count), (Axis(),) * behind), exact.reshape(count)


def _channel_map(
    node: fx.Node,
    source: Any,
    constant: Any,
    ctx: Context,
    make: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    shifts: bool,
) -> Lifted:
    """``scale * x + shift`` with scale and shift made from one constant."""
    read = _read(node, source, ctx)
    if read is None:
        return None
    native = ctx.constant(constant) if isinstance(constant, fx.Node) else constant
    exact = ctx.exact(constant) if isinstance(constant, fx.Node) else constant
    found = _along_channels(native, exact, read, ctx)
    if found is None or isinstance(found, Refusal):
        return found.at(node.name) if isinstance(found, Refusal) else None
    if isinstance(native, Tensor) and native.device.type == "meta":
        return None
    shape, vector = found
    count = vector.shape[0]
    scale, shift = make(vector)
    n = len(shape.axes or ())
    pick = dirac_kernel(count, [1] * n, count).reshape(count, 1, *[1] * n)
    weight = pick * scale.reshape(-1, *[1] * (n + 1)).to(pick)
    kernel = Kernel(shape.channels, shape.axes, weight, shift, shifts)
    owners = _cone(ctx, constant)
    return Affine(read, kernel.shape_only(), lambda: kernel, owners, paradigm="scale", cost=1)


def _operands(node: fx.Node) -> tuple[Any, Any] | None:
    if len(node.args) == 2:
        return node.args[0], node.args[1]
    if len(node.args) == 1 and "other" in node.kwargs:
        return node.args[0], node.kwargs["other"]
    if not node.args and {"input", "other"} <= set(node.kwargs):
        return node.kwargs["input"], node.kwargs["other"]
    return None


def _varies(value: Any) -> bool:
    return isinstance(value, fx.Node) and not value.meta["const"]


def _constant(value: Any) -> bool:
    return _is_number(value) or (isinstance(value, fx.Node) and value.meta["const"])


def _add(sign: float, reverse: bool = False) -> Callable[[fx.Node, Context], Lifted]:
    def handler(node: fx.Node, ctx: Context) -> Lifted:
        if set(node.kwargs) - {"alpha", "other", "input"}:
            return None
        pair = _operands(node)
        alpha = node.kwargs.get("alpha", 1)
        if pair is None or not _is_number(alpha):
            return None
        a, b = reversed(pair) if reverse else pair
        factor = sign * float(alpha)  # type: ignore[arg-type]
        if _varies(a) and _varies(b):
            if any(n.meta.get("kind") not in ("tensor", "unknown") for n in (a, b)):
                return None
            reads = [_read(node, a, ctx), _read(node, b, ctx)]
            if any(r is None for r in reads):
                return None
            return Sum([r for r in reads if r is not None], [None, None if factor == 1.0 else _times(factor)])
        if _varies(a) and _constant(b) and a.meta.get("kind") in ("tensor", "unknown"):
            return _channel_map(node, a, b, ctx, lambda v: (torch.ones_like(v), v * factor), True)
        if _varies(b) and _constant(a) and b.meta.get("kind") in ("tensor", "unknown"):
            return _channel_map(node, b, a, ctx, lambda v: (torch.full_like(v, factor), v), True)
        return None

    return handler


def _times(factor: float) -> Kernel:
    return Kernel(None, None, torch.full((1, 1), factor, dtype=torch.float64))


def _lerp(node: fx.Node, ctx: Context) -> Lifted:
    """``lerp(a, b, w) = (1 - w) a + w b`` with a constant number `w`."""
    given = _bound(node, ("input", "end", "weight"), {})
    if given is None or not _is_number(given.get("weight")):
        return None
    reads = [_read(node, given[k], ctx) for k in ("input", "end")]
    if any(r is None for r in reads):
        return None
    weight = float(given["weight"])
    return Sum([r for r in reads if r is not None], [_times(1.0 - weight), _times(weight)])


def _addcmul(node: fx.Node, ctx: Context) -> Lifted:
    """``addcmul(c, x, g, value=v) = c + v g x`` with constants `c` and `g` per channel."""
    given = _bound(node, ("input", "tensor1", "tensor2", "value"), {"value": 1})
    if given is None or not _is_number(given["value"]):
        return None
    a, b = given["tensor1"], given["tensor2"]
    if _varies(b):
        a, b = b, a
    shift = given["input"]
    if not (_varies(a) and _constant(b) and _constant(shift)) or not all(isinstance(t, fx.Node) for t in (b, shift)):
        return None
    scaled = _channel_map(node, a, b, ctx, lambda v: (v * float(given["value"]), None), False)
    moved = _channel_map(node, a, shift, ctx, lambda v: (torch.ones_like(v), v), True)
    if not isinstance(scaled, Affine) or not isinstance(moved, Affine):
        return scaled if not isinstance(scaled, Affine) else moved
    both = compose(moved.load(), scaled.load())
    if isinstance(both, Refusal):
        return both.at(node.name)
    owners = _cone(ctx, b, shift)
    return Affine(scaled.source, both.shape_only(), lambda: both, owners, paradigm="scale", cost=1)


def _mul(node: fx.Node, ctx: Context) -> Lifted:
    pair = _operands(node)
    if pair is None or set(node.kwargs) - {"other", "input"}:
        return None
    a, b = pair
    if _varies(b) and _constant(a):
        a, b = b, a
    if not (_varies(a) and _constant(b)) or a.meta.get("kind") not in ("tensor", "unknown"):
        return None
    return _channel_map(node, a, b, ctx, lambda v: (v, None), False)


def _div(node: fx.Node, ctx: Context) -> Lifted:
    pair = _operands(node)
    if pair is None or set(node.kwargs) - {"other", "input"} or not (_varies(pair[0]) and _constant(pair[1])):
        return None
    if pair[0].meta.get("kind") not in ("tensor", "unknown"):
        return None
    return _channel_map(node, pair[0], pair[1], ctx, lambda v: (1.0 / v, None), False)


def _neg(node: fx.Node, ctx: Context) -> Lifted:
    if len(node.args) != 1 or node.kwargs or not _varies(node.args[0]) or node.args[0].meta.get("kind") != "tensor":  # type: ignore[union-attr]
        return None
    return _channel_map(node, node.args[0], -1.0, ctx, lambda v: (v, None), False)


# --- concatenation, slices ------------------------------------------------------------------------------------------
def _cat(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("tensors", "dim"), {"dim": 0})
    if given is None:
        return None
    if "axis" in node.kwargs:
        return None
    parts = given["tensors"]
    if not isinstance(parts, (tuple, list)) or not all(_varies(p) for p in parts) or type(given["dim"]) is not int:
        return None
    reads = [_read(node, p, ctx) for p in parts]
    if any(r is None for r in reads) or not reads:
        return None
    sources = [r for r in reads if r is not None]
    behind = _behind(given["dim"], sources[0], ctx)
    return None if behind is None else Concat(sources, behind)


def _behind(dim: int, source: fx.Node, ctx: Context) -> int | None:
    """Axes behind dimension `dim` when it can be the channel axis."""
    if dim < 0:
        return -1 - dim
    rank = ctx.rank(source)
    return None if rank is None else rank - 1 - dim


def _select_channels(source: fx.Node, behind: int, start: int, stop: int, total: int) -> Lifted:
    channels = Channels.select(total, range(start, stop))
    weight = dirac_kernel(stop - start, [1] * behind, stop - start).reshape(stop - start, 1, *[1] * behind)
    kernel = Kernel(channels, (Axis(),) * behind, weight)
    return Affine(source, kernel.shape_only(), lambda: kernel, paradigm="slice")


def _getitem(node: fx.Node, ctx: Context) -> Lifted:
    owner, key = node.args
    if not isinstance(owner, fx.Node) or owner.meta["const"]:
        return None
    if type(key) is int and owner.meta.get("kind") == "sequence":
        return _part(node, owner, key, ctx)
    if owner.meta.get("kind") not in ("tensor", "unknown"):
        return None
    keys = key if isinstance(key, tuple) else (key,)
    if not all(isinstance(k, slice) or k is Ellipsis for k in keys):
        return None
    if any(isinstance(b, fx.Node) for k in keys if isinstance(k, slice) for b in (k.start, k.stop, k.step)):
        return None
    source = _read(node, owner, ctx)
    return None if source is None else _slices(node, source, keys, ctx)


def _slices(node: fx.Node, source: fx.Node, keys: Sequence[Any], ctx: Context) -> Lifted:
    rank = ctx.rank(source)
    if rank is None or keys.count(Ellipsis) > 1:
        return None
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys = [*keys[:at], *[slice(None)] * (rank - len(keys) + 1), *keys[at + 1 :]]
    keys = [*keys, *[slice(None)] * (rank - len(keys))]
    if len(keys) != rank or keys[0] != slice(None):
        return None
    full = [k == slice(None) for k in keys]
    if all(full):
        return _identity(node, node.args[0], ctx)
    n = rank - 2
    kernels: list[Kernel] = []
    axes = []
    for k in keys[2:]:
        axis = _slice_axis(k)
        if axis is None:
            return Refusal(Code.DATA_DEPENDENT, "a slice whose length depends on the size of its input", (node.name,))
        axes.append(axis)
    if not all(full[2:]):
        kernels.append(Kernel(None, tuple(axes), torch.ones(1, 1, *[1] * n, dtype=torch.float64)))
    if full[1]:
        return _fixed(node, source, kernels[0], paradigm="slice")
    if kernels:
        return None
    total = ctx.channels(source, n)
    if total is None or keys[1].step not in (None, 1):
        return None
    start, stop, _ = keys[1].indices(total)
    return _select_channels(source, n, start, stop, total) if stop > start else None


def _slice_axis(key: slice) -> Axis | None:
    start, stop, step = key.start or 0, key.stop, key.step or 1
    if (
        not all(type(v) is int for v in (start, step))
        or start < 0
        or step < 1
        or (stop is not None and (type(stop) is not int or stop >= 0))
    ):
        return None
    return Axis(1, step, 1, -start, stop or 0)


def _part(node: fx.Node, owner: fx.Node, index: int, ctx: Context) -> Lifted:
    """One piece of a chunk or split along the channels."""
    name = name_of(owner)
    if name not in ("chunk", "split", "tensor_split", "split_with_sizes"):
        return None
    if name == "chunk":
        given = _bound(owner, ("input", "chunks", "dim"), {"dim": 0})
    else:
        given = _bound(owner, ("input", "split_size_or_sections", "dim"), {"dim": 0})
        if given is None:
            given = _bound(owner, ("input", "split_sizes", "dim"), {"dim": 0})
            given = None if given is None else {**given, "split_size_or_sections": given["split_sizes"]}
    if given is None or type(given["dim"]) is not int:
        return None
    source = _read(owner, given["input"], ctx)
    if source is None or ctx.read(node, owner) is not owner:
        return None
    behind = _behind(given["dim"], source, ctx)
    if behind is None:
        return None
    total = ctx.channels(source, behind)
    sections = given.get("split_size_or_sections")
    if total is None and isinstance(sections, (list, tuple)) and all(type(s) is int for s in sections):
        total = sum(sections)  # anything else raises
    if total is None:
        return None
    sizes = _piece_sizes(name, given, total)
    if sizes is None or not -len(sizes) <= index < len(sizes):
        return None
    index %= len(sizes)
    start = sum(sizes[:index])
    return _select_channels(source, behind, start, start + sizes[index], total)


def _piece_sizes(name: str, given: dict[str, Any], total: int) -> list[int] | None:
    if name == "chunk":
        if type(given["chunks"]) is not int:
            return None
        each = -(-total // given["chunks"])
    else:
        sections = given["split_size_or_sections"]
        if isinstance(sections, (list, tuple)):
            return (
                list(sections)
                if all(type(s) is int for s in sections) and sum(sections) == total and name != "tensor_split"
                else None
            )
        if type(sections) is not int or name == "tensor_split":
            return None
        each = sections
    return [min(each, total - i) for i in range(0, total, each)]


def _unshuffle(node: fx.Node, source: Any, factor: Any, ctx: Context) -> Lifted:
    """Space to depth: a strided convolution that picks one position for each output channel."""
    read = _read(node, source, ctx)
    channels = None if read is None else ctx.channels(read, 2)
    if read is None or channels is None or type(factor) is not int:
        return None
    rows = channels * factor * factor
    weight = torch.eye(factor * factor, dtype=torch.float64).reshape(-1, 1, factor, factor).repeat(channels, 1, 1, 1)
    axis = Axis(factor, factor, 1, 0, factor - 1)  # the size is a multiple of the factor, or the original raises
    kernel = Kernel(Channels.select(channels, [o // factor**2 for o in range(rows)]), (axis, axis), weight)
    return _fixed(node, read, kernel, paradigm="slice", cost=1)


def _unshuffle_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "downscale_factor"), {})
    return None if given is None else _unshuffle(node, given["input"], given.get("downscale_factor"), ctx)


def _unshuffle_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    return _owned(_unshuffle(node, node.args[0], module.downscale_factor, ctx), node)


def _fill(node: fx.Node, ctx: Context) -> Lifted:
    """``padded[:, :, :a] = c``: the sides of a zero padding overwritten one after another with one constant."""
    target, key, value = node.args
    before = _read(node, target, ctx)
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
    shown = [_along_channels(ctx.constant(v), e, at, ctx) for (_, v), e in zip(sides, constants, strict=True)]
    if not all(isinstance(c, tuple) for c in shown):
        return None
    vectors = [c[1] for c in shown if isinstance(c, tuple)]
    if any(not torch.equal(v, vectors[0]) for v in vectors):
        return None
    axes = tuple(replace(a, border=Border.CONSTANT) if a.reads_outside else a for a in pad.shape.axes)
    kernel = replace(pad.load(), axes=axes, border_value=vectors[0])
    if vectors[0].numel() > 1:
        kernel = replace(replace(kernel, border_value=None).with_channels(vectors[0].numel()), border_value=vectors[0])
    whole = Affine(
        pad.source, kernel.shape_only(), lambda: kernel, _cone(ctx, *[v for _, v in sides]), paradigm="padding"
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


# --- views ----------------------------------------------------------------------------------------------------------
def _view(node: fx.Node, source: Any, ctx: Context, arrange: Callable[[int], Sequence[int] | None]) -> Lifted:
    """A view of known rank; `arrange` gives, for each axis of the result, the axis it is (-1: a mixture)."""
    read = _read(node, source, ctx)
    rank = None if read is None else ctx.rank(read)
    if read is None or rank is None:
        return None
    axes = arrange(rank)
    if axes is None:
        return None
    moves = {rank - 1 - old: len(axes) - 1 - new for new, old in enumerate(axes) if old >= 0}
    return View(read, moves)


def _flatten(node: fx.Node, source: Any, start: Any, end: Any, ctx: Context) -> Lifted:
    if type(start) is not int or type(end) is not int:
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        first, last = start % rank, end % rank
        return [*range(first), *([first] if first == last else [-1]), *range(last + 1, rank)]

    return _view(node, source, ctx, arrange)


def _flatten_function(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "start_dim", "end_dim"), {"start_dim": 0, "end_dim": -1})
    return None if given is None else _flatten(node, given["input"], given["start_dim"], given["end_dim"], ctx)


def _flatten_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    return _flatten(node, node.args[0], module.start_dim, module.end_dim, ctx)


def _transpose(node: fx.Node, ctx: Context) -> Lifted:
    given = _bound(node, ("input", "dim0", "dim1"), {})
    if given is None or not all(type(given.get(k)) is int for k in ("dim0", "dim1")):
        return None

    def arrange(rank: int) -> Sequence[int] | None:
        axes = list(range(rank))
        i, j = given["dim0"] % rank, given["dim1"] % rank
        axes[i], axes[j] = axes[j], axes[i]
        return axes

    return _view(node, given["input"], ctx, arrange)


def _permute(node: fx.Node, ctx: Context) -> Lifted:
    dims: Any = node.args[1:] or (node.kwargs.get("dims"),)
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    if not all(type(d) is int for d in dims):
        return None
    return _view(node, node.args[0], ctx, lambda rank: [d % rank for d in dims] if len(dims) == rank else None)


# --- tables ---------------------------------------------------------------------------------------------------------
def _module_handler(module: Any) -> Callable[[fx.Node, nn.Module, Context], Lifted] | None:
    if module is None:
        return None
    for classes, handler in MODULES:
        if isinstance(module, classes):
            return handler
    return None


_PADS = tuple(
    getattr(nn, f"{k}Pad{n}d") for k in ("Zero", "Constant", "Reflection", "Replication", "Circular") for n in (1, 2, 3)
)
MODULES: tuple[tuple[Any, Callable[[fx.Node, nn.Module, Context], Lifted]], ...] = (
    (nn.modules.conv._ConvTransposeNd, _transposed_module),
    (nn.modules.conv._ConvNd, _conv_module),
    (nn.Linear, _linear_module),
    (nn.modules.batchnorm._BatchNorm, _norm_module),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pool_module),
    (nn.Identity, _identity_module),
    (nn.modules.dropout._DropoutNd, _dropout_module),
    (_PADS, _pad_module),
    (nn.Flatten, _flatten_module),
    (nn.PixelUnshuffle, _unshuffle_module),
)
FUNCTIONS: dict[str, Callable[[fx.Node, Context], Lifted]] = {
    **{f"conv{n}d": _conv_function for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": _transposed_function for n in (1, 2, 3)},
    "linear": _linear_function,
    "batch_norm": _norm_function,
    **{f"avg_pool{n}d": _pool_function(n) for n in (1, 2, 3)},
    "pad": _pad_function,
    "dropout": _dropout_function,
    **{f"dropout{n}d": _dropout_function for n in (1, 2, 3)},
    "contiguous": _passthrough,
    "clone": _passthrough,
    "detach": _passthrough,
    **dict.fromkeys(("add", "add_", "iadd"), _add(1.0)),
    **dict.fromkeys(("sub", "sub_", "isub", "subtract"), _add(-1.0)),
    "rsub": _add(-1.0, reverse=True),
    **dict.fromkeys(("mul", "mul_", "imul", "multiply"), _mul),
    **dict.fromkeys(("div", "div_", "truediv", "itruediv", "true_divide", "divide"), _div),
    **dict.fromkeys(("neg", "neg_", "negative"), _neg),
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat),
    "getitem": _getitem,
    "setitem": _fill,
    "pixel_unshuffle": _unshuffle_function,
    "lerp": _lerp,
    "addcmul": _addcmul,
    "flatten": _flatten_function,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transpose),
    "permute": _permute,
}
