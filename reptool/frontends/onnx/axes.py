"""What ONNX joins, cuts, pads and rearranges along axes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod

import torch
from torch.nn import functional as F

from reptool.frontends.onnx.node import Made, Node, padded


def _concat(n: Node) -> Made:
    values = [n.value(i) for i in range(len(n))]
    return None if any(v is None for v in values) else n.r.call(torch.cat, values, n.attribute("axis"))


def _split(n: Node) -> Made:
    x, axis, sizes = n.value(0), n.attribute("axis", 0), n.ints(1, "split")
    if x is None:
        return None
    count = len(n.node.outputs)
    if sizes is None:
        shape = n.r.shape(n.given(0))
        size = None if shape is None else shape[axis]
        if size is None or n.given(1) is not None:
            return None
        each = -(-size // count)
        sizes = [min(each, size - i * each) for i in range(count)]
    pieces = n.r.call(torch.split, x, sizes, axis, kind="sequence")
    return [n.r.call(operator.getitem, pieces, i) for i in range(count)]


def _slice(n: Node) -> Made:
    x, rank = n.value(0), n.rank()
    starts, ends = n.ints(1, "starts"), n.ints(2, "ends")
    if x is None or rank is None or starts is None or ends is None:
        return None
    axes = n.ints(3, "axes") if n.given(3) is not None or "axes" in n.node.attributes else list(range(len(starts)))
    steps = n.ints(4) if n.given(4) is not None else [1] * len(starts)
    if axes is None or steps is None or any(s < 1 for s in steps):
        return None
    key: list[slice] = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        key[axis % rank] = slice(start or None, None if end >= 2**31 - 1 else end, None if step == 1 else step)
    return n.r.call(operator.getitem, x, tuple(key))


def _gather(n: Node) -> Made:
    x, index, rank = n.value(0), n.constant(1), n.rank()
    if x is None or index is None or rank is None:
        return None
    axis = n.attribute("axis", 0) % rank
    if index.dim() == 0:
        return n.r.call(operator.getitem, x, (*[slice(None)] * axis, int(index)))
    return n.r.call(torch.index_select, x, axis, n.value(1)) if index.dim() == 1 and bool((index >= 0).all()) else None


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(n: Node) -> Made:
    x, pads, rank = n.value(0), n.ints(1, "pads"), n.rank()
    mode = _PAD_MODES.get(n.attribute("mode", "constant"))
    fill = n.constant(2) if n.given(2) is not None else torch.tensor(n.attribute("value", 0.0))
    if x is None or pads is None or rank is None or mode is None or fill is None:
        return None
    axes = n.ints(3) if n.given(3) is not None else list(range(len(pads) // 2))
    if axes is None:
        return None
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis % rank], after[axis % rank] = pads[i], pads[i + len(axes)]
    if mode == "constant":
        return padded(n, x, before, after, float(fill))
    if any(before[:2] + after[:2]) or any(p < 0 for p in before + after) or rank < 3:
        return None
    flat = [p for pair in zip(reversed(before[2:]), reversed(after[2:]), strict=True) for p in pair]
    return n.r.call(F.pad, x, flat, mode)


def _reshape(n: Node) -> Made:
    x, sizes = n.value(0), n.ints(1, "shape")
    if x is None or sizes is None or (0 in sizes and n.attribute("allowzero", 0)):
        return None
    kept = next((i for i, s in enumerate(sizes) if s != 0), len(sizes))
    if kept and sizes[kept:] == [-1]:
        return n.r.call(torch.flatten, x, kept)
    return n.r.call(torch.reshape, x, [n.r.size(x, i) if s == 0 else s for i, s in enumerate(sizes)])


def _flatten(n: Node) -> Made:
    x = n.value(0)
    return n.r.call(torch.flatten, x, 1) if x is not None and n.attribute("axis", 1) == 1 else None


def _transpose(n: Node) -> Made:
    x, rank, perm = n.value(0), n.rank(), n.attribute("perm")
    if x is None or (perm is None and rank is None):
        return None
    return n.r.call(torch.permute, x, list(perm) if perm is not None else list(range(rank or 0))[::-1])


def _squeeze(n: Node) -> Made:
    x, axes = n.value(0), n.ints(1, "axes")
    return None if x is None or not axes else n.r.call(torch.squeeze, x, tuple(axes))


def _unsqueeze(n: Node) -> Made:
    x, axes, rank = n.value(0), n.ints(1, "axes"), n.rank()
    if x is None or axes is None or rank is None:
        return None
    for axis in sorted(a % (rank + len(axes)) for a in axes):
        x = n.r.call(torch.unsqueeze, x, axis)
    return x


def _expand(n: Node) -> Made:
    sizes = n.ints(1)
    given = n.constant(0)
    if sizes is None or given is None or prod(sizes) > 2**20:
        return None
    return n.r.call(torch.broadcast_to, n.value(0), list(torch.broadcast_shapes(tuple(sizes), given.shape)))


AXES: dict[str, Callable[[Node], Made]] = {
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
}
