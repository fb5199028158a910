"""Average poolings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from reptool.algebra.kernel import Axis, Kernel, identity
from reptool.algebra.resampling import Resampling
from reptool.fusions.avg_pool import avg_pool_kernel
from reptool.lift.reading import Context, Lifted, arguments, fixed, ints, owned, source_of
from reptool.refusal import Code, Refusal


def _pool(node: fx.Node, source: fx.Node | None, n: int, given: dict[str, Any]) -> Lifted:
    size = ints(given["kernel_size"], n)
    if size is None:
        return None
    stride = size if given["stride"] in (None, ()) else ints(given["stride"], n)
    padding = ints(given["padding"], n)
    divisor = given["divisor_override"]
    if stride is None or padding is None or (divisor is not None and type(divisor) is not int):
        return None
    if given["ceil_mode"] and any(s > 1 or p for s, p in zip(stride, padding, strict=True)):
        return Refusal(Code.POOL_GEOMETRY, "an average pooling with ceil_mode divides by what it sees", (node.name,))
    if any(padding) and not given["count_include_pad"] and divisor is None:
        return Refusal(Code.POOL_GEOMETRY, "an average pooling that does not count its padding", (node.name,))
    axes = tuple(Axis(k, s, 1, p, p) for k, s, p in zip(size, stride, padding, strict=True))
    weight = avg_pool_kernel(1, size, 1, divisor)
    moves = None if any(padding) or divisor is not None else averaged("AvgPool", n, kernel_size=size, stride=stride)
    kernel = Kernel(None, axes, weight)
    return fixed(node, source, kernel, paradigm="avg_pool", cost=weight.numel(), resampling=moves)


def averaged(name: str, n: int, **settings: Any) -> Resampling:
    """A pooling over so many axes."""
    return Resampling(f"{name}{n}d", tuple(settings.items()))


def _adaptive(node: fx.Node, source: fx.Node | None, n: int, size: Any) -> Lifted:
    """An adaptive average pooling, which is no kernel: its windows depend on the size of the image."""
    sizes = size if isinstance(size, (tuple, list)) else (size,) * n
    if len(sizes) != n or not all(s is None or type(s) is int for s in sizes):
        return None
    kernel, moves = identity().with_axes(n), averaged("AdaptiveAvgPool", n, output_size=tuple(sizes))
    return fixed(node, source, kernel, paradigm="resample", cost=1, resampling=moves, moves=True)


def adaptive_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """An adaptive average pooling of torch.nn."""
    n = next(n for n in (1, 2, 3) if isinstance(module, getattr(nn, f"AdaptiveAvgPool{n}d")))
    size: Any = module.output_size
    return owned(_adaptive(node, source_of(node, node.args[0], ctx), n, size), node)


def adaptive_function(n: int) -> Callable[[fx.Node, Context], Lifted]:
    """``adaptive_avg_pool1d`` to ``adaptive_avg_pool3d``, by the number of axes."""

    def handler(node: fx.Node, ctx: Context) -> Lifted:
        given = arguments(node, ("input", "output_size"), {})
        if given is None:
            return None
        return _adaptive(node, source_of(node, given.get("input"), ctx), n, given.get("output_size"))

    return handler


_POOL_DEFAULTS = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}


def pool_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """An average pooling of torch.nn."""
    n = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[
        next(c for c in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d) if isinstance(module, c))
    ]
    given = {k: getattr(module, k, v) for k, v in {**_POOL_DEFAULTS, "kernel_size": None}.items()}
    return owned(_pool(node, source_of(node, node.args[0], ctx), n, given), node)


def pool_function(n: int) -> Callable[[fx.Node, Context], Lifted]:
    """``avg_pool1d`` to ``avg_pool3d``, by the number of axes."""

    def handler(node: fx.Node, ctx: Context) -> Lifted:
        names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        given = arguments(node, names, _POOL_DEFAULTS)
        return None if given is None else _pool(node, source_of(node, given["input"], ctx), n, given)

    return handler
