"""Lift: an operation of the captured graph as an affine map, a sum or a concatenation, or the reason why it is none.

One file for each kind of operation; which function reads which operation stands in the two tables here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from reptool.ir.computed_weights import has_weight_property
from reptool.lift.arithmetic import add, addcdiv, addcmul, div, lerp, mul, neg, reduced, stack, zero
from reptool.lift.cast import cast
from reptool.lift.layers.convolutions import conv_function, conv_module, linear_function, linear_module
from reptool.lift.layers.deformable import NAME as DEFORMABLE
from reptool.lift.layers.deformable import deformable
from reptool.lift.layers.transposed import asks_for_size, convolution, transposed_function, transposed_module
from reptool.lift.layout.identities import dropout_function, dropout_module, identity_module, passthrough
from reptool.lift.layout.orders import flip, repeat, roll, shuffle_function, shuffle_module
from reptool.lift.layout.padding import fill, pad_function, pad_module
from reptool.lift.layout.resampling import repeated, upsample_function, upsample_module
from reptool.lift.layout.reshaped import reshaped, unflattened, viewed_as
from reptool.lift.layout.slices import (
    SPLITS,
    cat,
    getitem,
    index_select,
    narrow,
    pieces,
    unshuffle_function,
    unshuffle_module,
)
from reptool.lift.layout.unchanged import CLASSES, LAWS, unchanged_function, unchanged_module
from reptool.lift.layout.views import (
    attribute,
    flatten_function,
    flatten_module,
    movedim,
    permute,
    squeeze,
    transpose,
    unsqueeze,
)
from reptool.lift.norms import norm_function, norm_module
from reptool.lift.pooling import adaptive_function, adaptive_module, pool_function, pool_module
from reptool.lift.products import addmm, einsum, matmul, tensordot
from reptool.lift.reading import Context as Context
from reptool.lift.reading import Lifted as Lifted
from reptool.lift.reading import source_of
from reptool.lift.registry import function_entries, module_entries, reads

_PADS = tuple(
    getattr(nn, f"{k}Pad{n}d") for k in ("Zero", "Constant", "Reflection", "Replication", "Circular") for n in (1, 2, 3)
)
_MODULES: tuple[tuple[Any, Callable[[fx.Node, nn.Module, Context], Lifted]], ...] = (
    (nn.modules.conv._ConvTransposeNd, transposed_module),
    (nn.modules.conv._ConvNd, conv_module),
    (nn.Linear, linear_module),
    (nn.modules.batchnorm._BatchNorm, norm_module),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), pool_module),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), adaptive_module),
    (nn.Identity, identity_module),
    (nn.modules.dropout._DropoutNd, dropout_module),
    (_PADS, pad_module),
    (nn.Flatten, flatten_module),
    (nn.PixelUnshuffle, unshuffle_module),
    (nn.ChannelShuffle, shuffle_module),
    (CLASSES, unchanged_module),
    (nn.Upsample, upsample_module),
)
_FUNCTIONS: dict[str, Callable[[fx.Node, Context], Lifted]] = {
    **{f"conv{n}d": conv_function for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": transposed_function for n in (1, 2, 3)},
    **dict.fromkeys(("convolution", "_convolution"), convolution),
    "linear": linear_function,
    DEFORMABLE: deformable,
    "batch_norm": norm_function,
    **{f"avg_pool{n}d": pool_function(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": adaptive_function(n) for n in (1, 2, 3)},
    "pad": pad_function,
    **{f"dropout{n}d": dropout_function for n in (1, 2, 3)},
    **{
        f"{kind}dropout{end}": dropout_function
        for kind in ("", "alpha_", "feature_", "feature_alpha_")
        for end in ("", "_")
    },
    "contiguous": passthrough,
    "clone": passthrough,
    "detach": passthrough,
    **dict.fromkeys(("to", "type", "float", "half", "double", "bfloat16"), cast),
    **dict.fromkeys(("add", "add_", "iadd"), add(1.0)),
    **dict.fromkeys(("sub", "sub_", "isub", "subtract"), add(-1.0)),
    "rsub": add(-1.0, reverse=True),
    **dict.fromkeys(("mul", "mul_", "imul", "multiply"), mul),
    **dict.fromkeys(("div", "div_", "truediv", "itruediv", "true_divide", "divide"), div),
    **dict.fromkeys(("neg", "neg_", "negative"), neg),
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "getitem": getitem,
    **dict.fromkeys(SPLITS, pieces),
    "narrow": narrow,
    "index_select": index_select,
    "addcdiv": addcdiv,
    **dict.fromkeys(("matmul", "mm", "bmm"), matmul),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "einsum": einsum,
    "tensordot": tensordot,
    "setitem": fill,
    "pixel_unshuffle": unshuffle_function,
    "lerp": lerp,
    "stack": stack,
    "zeros_like": zero,
    "sum": reduced(False),
    "mean": reduced(True),
    "addcmul": addcmul,
    "flatten": flatten_function,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    "permute": permute,
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    "getattr": attribute,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), reshaped),
    **dict.fromkeys(("view_as", "reshape_as"), viewed_as),
    "unflatten": unflattened,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "flip": flip,
    "roll": roll,
    "repeat": repeat,
    "repeat_interleave": repeated,
    "channel_shuffle": shuffle_function,
    **dict.fromkeys(LAWS, unchanged_function),
    "interpolate": upsample_function,
}


for _classes, _read in _MODULES:
    reads(*(_classes if isinstance(_classes, tuple) else (_classes,)))(_read)
for _name, _function in _FUNCTIONS.items():
    reads(_name)(_function)


def lift(node: fx.Node, ctx: Context) -> Lifted:
    """Read one node.

    Returns:
        An op, a `Refusal` for something that looks foldable and is not, or None for everything else.
    """
    if node.meta["const"]:
        return None
    if node.op == "call_module":
        return _module(node, ctx)
    if node.op in ("call_function", "call_method"):
        found = (entry.read(node, ctx) for entry in function_entries(node, ctx.active))
        return next((op for op in found if op is not None), None)
    return None


def _module(node: fx.Node, ctx: Context) -> Lifted:
    module: Any = node.meta.get("module")
    for entry in module_entries(type(module), ctx.active):
        if entry.rule and (own := entry.read(node, module, ctx)) is not None:
            return own
        if not entry.rule and "opaque" not in node.meta:
            return entry.read(node, module, ctx) if _is_plain(node) else None
    return _opaque_module(node, ctx) if "opaque" in node.meta else None


def _is_plain(node: fx.Node) -> bool:
    """Whether a module of torch's is called with one value and computes with the weights that it holds."""
    plain = (len(node.args) == 1 and not node.kwargs) or asks_for_size(node)
    if node.meta.get("kind") == "unknown" or not plain or not isinstance(node.args[0], fx.Node):
        return False
    return not has_weight_property(node.meta["module"])


def _opaque_module(node: fx.Node, ctx: Context) -> Lifted:
    """A module whose code is not read: what its impulse response says, where that may be asked for."""
    source = source_of(node, node.args[0], ctx) if len(node.args) == 1 and not node.kwargs else None
    return None if source is None else ctx.opaque(node, source)
