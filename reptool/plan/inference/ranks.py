"""Ranks: how many axes the value of an operation or module has, by those of what it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from reptool.ir.nodes import name_of
from reptool.ir.shapes import SAME_SHAPE_MODULES

Rank = Callable[[fx.Node], "int | None"]
"""The rank of an earlier value, None when unknown."""
RANKED_MODULES = tuple(
    (getattr(nn, f"{kind}{n}d"), n + 2)
    for kind in ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "BatchNorm")
    for n in (1, 2, 3)
    if (kind, n) != ("BatchNorm", 1)
)
SAME_RANK = {"cat", "concat", "pad", "split", "chunk", "split_with_sizes", "tensor_split"}
ORDERS = {"transpose", "roll", "flip", "swapaxes", "swapdims", "movedim", "moveaxis", "channel_shuffle"}


def module_rank(node: fx.Node, rank: Rank) -> int | None:
    """The rank of what a module gives."""
    module = node.meta.get("module")
    for cls, count in RANKED_MODULES:
        if isinstance(module, cls) and node.meta["kind"] == "tensor":
            return count
    first = node.args[0] if node.args else None
    if isinstance(module, (*SAME_SHAPE_MODULES, nn.Linear, nn.Upsample, nn.PixelShuffle)) and isinstance(
        first, fx.Node
    ):
        return rank(first)
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
        return 2
    return None


def reshaped_rank(node: fx.Node, name: str, first: Any, rank: Rank) -> int | None:
    """The rank of what an operation that rearranges, reduces or indexes gives."""
    rest = node.args[1:]
    if name in ("view", "reshape", "permute", "expand", "repeat"):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(sizes) if sizes and not node.kwargs and not _is_size(sizes) else None
    if name in ("reshape_as", "view_as", "expand_as") and rest and isinstance(rest[0], fx.Node):
        return rank(rest[0])
    if name in ("matmul", "bmm", "baddbmm"):
        ranks = [rank(n) or 0 for n in node.all_input_nodes]
        return max(ranks) if min(ranks, default=0) > 1 else None  # of a vector or what is unknown: another
    if name in ("mean", "sum", "amax", "amin") and isinstance(first, fx.Node):
        return _reduced_rank(node, rank(first))
    if name == "flatten" and isinstance(first, fx.Node):
        start = rest[0] if rest else node.kwargs.get("start_dim", 0)
        end = rest[1] if len(rest) > 1 else node.kwargs.get("end_dim", -1)
        before = rank(first)
        if start == 1 and end == -1:
            return 2
        if before is None or type(start) is not int or type(end) is not int:
            return None
        return before - (end % before - start % before)
    if name == "getitem" and isinstance(first, fx.Node) and first.meta.get("kind") == "tensor":
        return _indexed_rank(rank(first), node.args[1])
    if name == "getattr":
        return rank(first) if isinstance(first, fx.Node) and rest[0] in ("mT", "T") else None
    if name in ORDERS and isinstance(first, fx.Node):
        return rank(first)
    if name in (
        "adaptive_avg_pool2d",
        "max_pool2d",
        "avg_pool2d",
        "interpolate",
        "conv2d",
        "pad",
        "adaptive_max_pool2d",
    ) and isinstance(first, fx.Node):
        return 4 if name.endswith("2d") else rank(first)
    return None


def _indexed_rank(rank: int | None, key: Any) -> int | None:
    """The rank of a value at numbers and slices, with new axes."""
    keys = key if isinstance(key, tuple) else (key,)
    if rank is None or not all(k is None or k is Ellipsis or isinstance(k, slice) or type(k) is int for k in keys):
        return None
    return rank + sum(k is None for k in keys) - sum(type(k) is int for k in keys)


def _reduced_rank(node: fx.Node, rank: int | None) -> int | None:
    """The rank after a reduction along stated axes."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    if dims is None and keep is False:
        return 0
    if rank is None or not isinstance(dims, (int, tuple, list)) or type(keep) is not bool:
        return None
    return rank if keep else rank - (1 if isinstance(dims, int) else len(dims))


def keeps_rank(node: fx.Node) -> bool:
    """Whether a reader is a linear layer, a resampling, an index of slices alone or a piece of a split value."""
    if node.op == "call_module":
        return isinstance(node.meta.get("module"), (nn.Linear, nn.Upsample))
    if name_of(node) != "getitem":
        return name_of(node) in ("interpolate", "repeat_interleave") and bool(node.args[1:] or node.kwargs)
    owner, key = node.args
    if isinstance(owner, fx.Node) and owner.meta.get("kind") == "sequence" and type(key) is int:
        return name_of(owner) in SAME_RANK
    return all(isinstance(k, slice) or k is Ellipsis for k in (key if isinstance(key, tuple) else (key,)))


def _is_size(sizes: Any) -> bool:
    return len(sizes) == 1 and isinstance(sizes[0], fx.Node) and sizes[0].meta.get("kind") == "size"
