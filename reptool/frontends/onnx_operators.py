"""ONNX operators as the functions of torch that `lift` reads; what has no entry here stays as it is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

Made = fx.Node | list[fx.Node] | None
"""The value of a node, or its values; None for a node that stays as it is."""


class Reader(Protocol):
    """What an operator needs to know of the graph in which it stands."""

    def value(self, given: Any) -> fx.Node | None:
        """The node of an input, None where there is none."""

    def constant(self, given: Any) -> Tensor | None:
        """The tensor of an input that is constant."""

    def shape(self, given: Any) -> tuple[int | None, ...] | None:
        """The sizes of a value as far as the file fixes them; None where not even their number is known."""

    def dtype(self, given: Any) -> torch.dtype | None:
        """The dtype of a value as far as it is fixed."""

    def held(self, tensor: Tensor) -> fx.Node:
        """Write a constant that was worked out."""

    def call(self, function: Callable[..., Any], *args: Any, kind: str = "tensor") -> fx.Node:
        """Write one operation."""

    def size(self, value: fx.Node, axis: int) -> fx.Node:
        """Write the size of a value along an axis."""


def read(node: Any, r: Reader, opset: int) -> Made:
    """What a node of the default domain computes.

    Args:
        node: a node of `onnx_ir`.
        r: the graph.
        opset: version of the default domain.
    """
    handler = _OPERATORS.get(node.op_type)
    return None if handler is None else handler(_Node(node, r, opset))


class _Node:
    """A node with its inputs and attributes."""

    def __init__(self, node: Any, r: Reader, opset: int) -> None:
        self.node, self.r, self.opset = node, r, opset

    def __len__(self) -> int:
        return len(self.node.inputs)

    def given(self, i: int) -> Any:
        return self.node.inputs[i] if i < len(self.node.inputs) else None

    def value(self, i: int) -> fx.Node | None:
        return self.r.value(self.given(i))

    def constant(self, i: int) -> Tensor | None:
        return self.r.constant(self.given(i))

    def ints(self, i: int, attribute: str = "") -> list[int] | None:
        """A constant input, or the attribute that it was in earlier opsets."""
        if attribute and attribute in self.node.attributes:
            return list(self.attribute(attribute))
        found = self.constant(i)
        return None if found is None else [int(v) for v in found.reshape(-1)]

    def attribute(self, name: str, default: Any = None) -> Any:
        held = self.node.attributes.get(name)
        return default if held is None else held.value

    def rank(self, i: int = 0) -> int | None:
        shape = self.r.shape(self.given(i))
        return None if shape is None else len(shape)

    @property
    def single(self) -> bool:
        """Whether nothing but the first output is used."""
        return all(not o.uses() and not o.is_graph_output() for o in self.node.outputs[1:])


# --- layers ---------------------------------------------------------------------------------------------------------
_CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _geometry(n: _Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """Strides, dilations, padding before and after; None where the padding depends on the size of the image."""
    axes = len(kernel)
    strides = list(n.attribute("strides", [1] * axes))
    dilations = list(n.attribute("dilations", [1] * axes))
    auto = n.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID", ""):
        pads = list(n.attribute("pads", [0] * 2 * axes)) if auto != "VALID" else [0] * 2 * axes
        return strides, dilations, pads[:axes], pads[axes:]
    shape = n.r.shape(n.given(0))
    sizes = [None] * axes if shape is None else list(shape[-axes:])
    totals = []
    for k, s, d, size in zip(kernel, strides, dilations, sizes, strict=True):
        if s > 1 and size is None:
            return None
        short = 0 if size is None else -(-size // s) * s - size  # of a multiple of the stride
        totals.append(max(d * (k - 1) + 1 - s + short, 0))
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (strides, dilations, less, more) if auto == "SAME_UPPER" else (strides, dilations, more, less)


def _padded(n: _Node, x: fx.Node, before: list[int], after: list[int], fill: float = 0.0) -> fx.Node:
    first = next((i for i, p in enumerate(zip(before, after, strict=True)) if any(p)), len(before))
    flat = [p for pair in zip(reversed(before[first:]), reversed(after[first:]), strict=True) for p in pair]
    return n.r.call(F.pad, x, flat, "constant", fill) if flat else n.r.call(torch.clone, x)


def _conv(n: _Node) -> Made:
    x, shape = n.value(0), n.r.shape(n.given(1))
    kernel = [] if shape is None else [k for k in shape[2:] if k is not None]
    found = _geometry(n, kernel) if len(kernel) in _CONVS else None
    if x is None or shape is None or found is None:
        return None
    strides, dilations, before, after = found
    padding = before if before == after else [0] * len(kernel)
    if before != after:
        x = _padded(n, x, before, after)
    return n.r.call(
        _CONVS[len(kernel)], x, n.value(1), n.value(2), strides, padding, dilations, n.attribute("group", 1)
    )


def _conv_transpose(n: _Node) -> Made:
    x, w = n.value(0), n.constant(1)
    kernel = [] if w is None else list(w.shape[2:])
    if x is None or len(kernel) not in _TRANSPOSED or n.attribute("output_shape") is not None:
        return None
    if n.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, dilations, before, after = _geometry(n, kernel) or ([], [], [], [])
    more = [o + b - a for o, b, a in zip(n.attribute("output_padding", [0] * len(kernel)), before, after, strict=True)]
    if any(not 0 <= m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        return None  # torch has no transposed convolution that is cropped like this
    function = _TRANSPOSED[len(kernel)]
    return n.r.call(function, x, n.value(1), n.value(2), strides, before, more, n.attribute("group", 1), dilations)


def _batch_norm(n: _Node) -> Made:
    if not n.single or n.attribute("training_mode", 0) or n.attribute("spatial", 1) != 1:
        return None
    values = [n.value(i) for i in range(5)]
    return n.r.call(torch.batch_norm, *values, False, 0.1, float(n.attribute("epsilon", 1e-5)), False)


def _gemm(n: _Node) -> Made:
    x, w, bias = n.value(0), n.constant(1), n.value(2)
    alpha, beta = n.attribute("alpha", 1.0), n.attribute("beta", 1.0)
    if x is None or w is None or n.attribute("transA", 0) or n.rank() not in (2, None):
        return None
    weight = n.value(1)
    if not n.attribute("transB", 0):
        weight = n.r.call(torch.t, weight)
    if alpha != 1:
        weight = n.r.call(torch.mul, weight, alpha)
    if bias is not None and beta != 1:
        bias = n.r.call(torch.mul, bias, beta)
    shape = n.r.shape(n.given(2))
    if bias is None or (
        shape is not None and len(shape) == 1 and shape[0] == w.shape[0 if n.attribute("transB", 0) else 1]
    ):
        return n.r.call(F.linear, x, weight, bias)
    return n.r.call(torch.add, n.r.call(F.linear, x, weight), bias)


def _matmul(n: _Node) -> Made:
    x, w = n.value(0), n.constant(1)
    if x is None or n.value(1) is None:
        return None
    if w is not None and w.dim() == 2:
        return n.r.call(F.linear, x, n.r.call(torch.t, n.value(1)))
    return n.r.call(torch.matmul, x, n.value(1))


def _average_pool(n: _Node) -> Made:
    x, kernel = n.value(0), list(n.attribute("kernel_shape"))
    found = _geometry(n, kernel) if len(kernel) in _POOLS else None
    if x is None or found is None or any(d != 1 for d in found[1]):
        return None
    strides, _, before, after = found
    counted = bool(n.attribute("count_include_pad", 0))
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        if not counted:
            return None
        x, before = _padded(n, x, before, after), [0] * len(kernel)
    return n.r.call(_POOLS[len(kernel)], x, kernel, strides, before, bool(n.attribute("ceil_mode", 0)), counted)


_LARGEST: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _max_pool(n: _Node) -> Made:
    x, kernel = n.value(0), list(n.attribute("kernel_shape"))
    found = _geometry(n, kernel) if len(kernel) in _LARGEST and n.single else None
    if x is None or found is None:
        return None
    strides, dilations, before, after = found
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        return None
    return n.r.call(_LARGEST[len(kernel)], x, kernel, strides, before, dilations, bool(n.attribute("ceil_mode", 0)))


def _global_largest(n: _Node) -> Made:
    x, rank = n.value(0), n.rank()
    return None if x is None or rank is None else n.r.call(torch.amax, x, list(range(2, rank)), True)


_RESAMPLED = {
    ("nearest", "asymmetric", "floor"): ("nearest", None),
    ("linear", "half_pixel", ""): ("linear", False),
    ("linear", "pytorch_half_pixel", ""): ("linear", False),
    ("linear", "align_corners", ""): ("linear", True),
    ("cubic", "half_pixel", ""): ("cubic", False),
    ("cubic", "pytorch_half_pixel", ""): ("cubic", False),
    ("cubic", "align_corners", ""): ("cubic", True),
}
"""The mode, the coordinates and the rounding of Resize -> how torch calls it, and whether the corners are aligned."""
_BY_AXES = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}


def _resampled(n: _Node) -> Made:
    """The image to other sizes that the file fixes, as one of torch's."""
    x, shape, mode = n.value(0), n.r.shape(n.given(0)), n.attribute("mode", "nearest")
    rounding = n.attribute("nearest_mode", "round_prefer_floor") if mode == "nearest" else ""
    known = _RESAMPLED.get((mode, n.attribute("coordinate_transformation_mode", "half_pixel"), rounding))
    odd = n.attribute("axes") is not None or n.attribute("antialias", 0) or n.attribute("exclude_outside", 0)
    if x is None or shape is None or known is None or odd or len(n) < 3 or n.opset < 11:
        return None
    name = known[0] if known[0] == "nearest" else _BY_AXES.get((known[0], len(shape) - 2))
    if mode == "cubic" and n.attribute("cubic_coeff_a", -0.75) != -0.75:
        return None
    scales, sizes = (n.constant(i) if n.given(i) is not None else None for i in (2, 3))
    by = [] if scales is None else [float(s) for s in scales]
    if name is not None and len(by) == len(shape) and by[:2] == [1.0, 1.0]:
        return n.r.call(F.interpolate, x, None, by[2:], name, known[1])
    to = [] if sizes is None else [int(s) for s in sizes]
    if name is None or len(to) != len(shape) or to[:2] != list(shape[:2]):
        return None
    return n.r.call(F.interpolate, x, to[2:], None, name, known[1])


def _depth_to_space(n: _Node) -> Made:
    x = n.value(0)
    return n.r.call(F.pixel_shuffle, x, n.attribute("blocksize")) if n.attribute("mode", "DCR") == "CRD" and x else None


def _global_average(n: _Node) -> Made:
    x, rank = n.value(0), n.rank()
    return None if x is None or rank is None else n.r.call(torch.mean, x, list(range(2, rank)), True)


def _repeated(n: _Node) -> Made:
    """Nearest resampling by whole numbers, however the file says where a position is read."""
    x, rank = n.value(0), n.rank()
    at = 1 if n.node.op_type == "Upsample" or (n.opset < 11 and len(n) < 3) else 2
    held = n.constant(at)
    scales = list(n.attribute("scales", [])) if held is None else [float(v) for v in held.reshape(-1)]
    if x is None or rank is None or n.attribute("mode", "nearest") != "nearest" or n.given(3) is not None:
        return None
    axes = n.attribute("axes")
    if axes is not None:
        known = {a % rank: s for a, s in zip(axes, scales, strict=True)}
        scales = [known.get(a, 1.0) for a in range(rank)]
    if len(scales) != rank or not 3 <= rank <= 5 or scales[:2] != [1, 1] or any(s < 1 or s % 1 for s in scales):
        return None
    if n.node.op_type == "Resize" and n.opset > 10:
        where = n.attribute("coordinate_transformation_mode", "half_pixel")
        rounded = n.attribute("nearest_mode", "round_prefer_floor")
        if (where, rounded) != ("asymmetric", "floor") and not (where == "half_pixel" and rounded.startswith("round")):
            return None
    return n.r.call(F.interpolate, x, None, [int(s) for s in scales[2:]], "nearest")


def _resize(n: _Node) -> Made:
    return _repeated(n) or _resampled(n)


# --- arithmetic -----------------------------------------------------------------------------------------------------
def _function(function: Callable[..., Any]) -> Callable[[_Node], Made]:
    def made(n: _Node) -> Made:
        values = [n.value(i) for i in range(len(n))]
        held = [c for i in range(len(n)) if (c := n.constant(i)) is not None]
        if any(v is None for v in values) or not all(c.is_floating_point() for c in held):
            return None  # integers divide otherwise
        return n.r.call(function, *values)

    return made


def _sum(n: _Node) -> Made:
    values = [n.value(i) for i in range(len(n))]
    if any(v is None for v in values):
        return None
    total = values[0]
    for value in values[1:]:
        total = n.r.call(torch.add, total, value)
    return n.r.call(torch.clone, total) if len(values) == 1 else total


def _as_it_is(n: _Node) -> Made:
    x = n.value(0)
    return None if x is None or not n.single else n.r.call(torch.clone, x)


def _cast_like(n: _Node) -> Made:
    given, dtype = n.constant(0), n.r.dtype(n.given(1))
    if given is not None and dtype is not None:
        return n.r.held(given.to(dtype))
    return _as_it_is(n) if dtype is not None and dtype == n.r.dtype(n.given(0)) else None


def _dropout(n: _Node) -> Made:
    training = n.constant(2) if n.given(2) is not None else torch.zeros(())
    return _as_it_is(n) if training is not None and not bool(training) else None


# --- channels and axes ----------------------------------------------------------------------------------------------
def _concat(n: _Node) -> Made:
    values = [n.value(i) for i in range(len(n))]
    return None if any(v is None for v in values) else n.r.call(torch.cat, values, n.attribute("axis"))


def _split(n: _Node) -> Made:
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


def _slice(n: _Node) -> Made:
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


def _gather(n: _Node) -> Made:
    x, index, rank = n.value(0), n.constant(1), n.rank()
    if x is None or index is None or rank is None:
        return None
    axis = n.attribute("axis", 0) % rank
    if index.dim() == 0:
        return n.r.call(operator.getitem, x, (*[slice(None)] * axis, int(index)))
    return n.r.call(torch.index_select, x, axis, n.value(1)) if index.dim() == 1 and bool((index >= 0).all()) else None


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(n: _Node) -> Made:
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
        return _padded(n, x, before, after, float(fill))
    if any(before[:2] + after[:2]) or any(p < 0 for p in before + after) or rank < 3:
        return None
    flat = [p for pair in zip(reversed(before[2:]), reversed(after[2:]), strict=True) for p in pair]
    return n.r.call(F.pad, x, flat, mode)


def _reshape(n: _Node) -> Made:
    x, sizes = n.value(0), n.ints(1, "shape")
    if x is None or sizes is None or (0 in sizes and n.attribute("allowzero", 0)):
        return None
    kept = next((i for i, s in enumerate(sizes) if s != 0), len(sizes))
    if kept and sizes[kept:] == [-1]:
        return n.r.call(torch.flatten, x, kept)
    return n.r.call(torch.reshape, x, [n.r.size(x, i) if s == 0 else s for i, s in enumerate(sizes)])


def _flatten(n: _Node) -> Made:
    x = n.value(0)
    return n.r.call(torch.flatten, x, 1) if x is not None and n.attribute("axis", 1) == 1 else None


def _transpose(n: _Node) -> Made:
    x, rank, perm = n.value(0), n.rank(), n.attribute("perm")
    if x is None or (perm is None and rank is None):
        return None
    return n.r.call(torch.permute, x, list(perm) if perm is not None else list(range(rank or 0))[::-1])


def _squeeze(n: _Node) -> Made:
    x, axes = n.value(0), n.ints(1, "axes")
    return None if x is None or not axes else n.r.call(torch.squeeze, x, tuple(axes))


def _unsqueeze(n: _Node) -> Made:
    x, axes, rank = n.value(0), n.ints(1, "axes"), n.rank()
    if x is None or axes is None or rank is None:
        return None
    for axis in sorted(a % (rank + len(axes)) for a in axes):
        x = n.r.call(torch.unsqueeze, x, axis)
    return x


def _reduce(function: Callable[..., Any]) -> Callable[[_Node], Made]:
    def made(n: _Node) -> Made:
        x, axes, rank = n.value(0), n.ints(1, "axes"), n.rank()
        if x is None or (axes is None and (n.given(1) is not None or rank is None)):
            return None
        if not axes and n.attribute("noop_with_empty_axes", 0):
            return None
        return n.r.call(function, x, list(axes or range(rank or 0)), bool(n.attribute("keepdims", 1)))

    return made


def _norm2(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keepdim)


def _clip(n: _Node) -> Made:
    x = n.value(0)
    limits = [n.constant(i) if n.given(i) is not None else n.attribute(name) for i, name in ((1, "min"), (2, "max"))]
    if x is None or any(n.given(i) is not None and n.constant(i) is None for i in (1, 2)):
        return None
    low, high = (None if v is None else float(v) for v in limits)
    return _as_it_is(n) if low is None and high is None else n.r.call(torch.clamp, x, low, high)


def _expand(n: _Node) -> Made:
    sizes = n.ints(1)
    given = n.constant(0)
    if sizes is None or given is None or prod(sizes) > 2**20:
        return None
    return n.r.call(torch.broadcast_to, n.value(0), list(torch.broadcast_shapes(tuple(sizes), given.shape)))


_OPERATORS: dict[str, Callable[[_Node], Made]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _global_largest,
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "DepthToSpace": _depth_to_space,
    "Add": _function(torch.add),
    "Sub": _function(torch.sub),
    "Mul": _function(torch.mul),
    "Div": _function(torch.div),
    "Neg": _function(torch.neg),
    "Sum": _sum,
    "Identity": _as_it_is,
    "CastLike": _cast_like,
    "Dropout": _dropout,
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
    "Clip": _clip,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(_norm2),
    **{
        name: _function(function)
        for name, function in (
            ("Relu", torch.relu), ("Sigmoid", torch.sigmoid), ("Tanh", torch.tanh), ("Sqrt", torch.sqrt),
            ("Exp", torch.exp), ("Log", torch.log), ("Abs", torch.abs), ("Pow", torch.pow), ("Erf", torch.erf),
            ("Reciprocal", torch.reciprocal), ("Softplus", F.softplus),
        )
    },
}  # fmt: skip
