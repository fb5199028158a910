"""Convolutions, products, norms and poolings of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from reptool.frontends.onnx.node import Made, Node, padded

_CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _geometry(n: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]] | None:
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


def _conv(n: Node) -> Made:
    x, shape = n.value(0), n.r.shape(n.given(1))
    kernel = [] if shape is None else [k for k in shape[2:] if k is not None]
    found = _geometry(n, kernel) if len(kernel) in _CONVS else None
    if x is None or shape is None or found is None:
        return None
    strides, dilations, before, after = found
    padding = before if before == after else [0] * len(kernel)
    if before != after:
        x = padded(n, x, before, after)
    return n.r.call(
        _CONVS[len(kernel)], x, n.value(1), n.value(2), strides, padding, dilations, n.attribute("group", 1)
    )


def _conv_transpose(n: Node) -> Made:
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


def _batch_norm(n: Node) -> Made:
    if not n.single or n.attribute("training_mode", 0) or n.attribute("spatial", 1) != 1:
        return None
    values = [n.value(i) for i in range(5)]
    return n.r.call(torch.batch_norm, *values, False, 0.1, float(n.attribute("epsilon", 1e-5)), False)


def _gemm(n: Node) -> Made:
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


def _matmul(n: Node) -> Made:
    x, w = n.value(0), n.constant(1)
    if x is None or n.value(1) is None:
        return None
    if w is not None and w.dim() == 2:
        return n.r.call(F.linear, x, n.r.call(torch.t, n.value(1)))
    return n.r.call(torch.matmul, x, n.value(1))


def _average_pool(n: Node) -> Made:
    x, kernel = n.value(0), list(n.attribute("kernel_shape"))
    found = _geometry(n, kernel) if len(kernel) in _POOLS else None
    if x is None or found is None or any(d != 1 for d in found[1]):
        return None
    strides, _, before, after = found
    counted = bool(n.attribute("count_include_pad", 0))
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        if not counted:
            return None
        x, before = padded(n, x, before, after), [0] * len(kernel)
    return n.r.call(_POOLS[len(kernel)], x, kernel, strides, before, bool(n.attribute("ceil_mode", 0)), counted)


def _max_pool(n: Node) -> Made:
    x, kernel = n.value(0), list(n.attribute("kernel_shape"))
    found = _geometry(n, kernel) if len(kernel) in _LARGEST and n.single else None
    if x is None or found is None:
        return None
    strides, dilations, before, after = found
    if before != after or any(2 * p > k for p, k in zip(before, kernel, strict=True)):
        return None
    return n.r.call(_LARGEST[len(kernel)], x, kernel, strides, before, dilations, bool(n.attribute("ceil_mode", 0)))


def _global_average(n: Node) -> Made:
    x, rank = n.value(0), n.rank()
    return None if x is None or rank is None else n.r.call(torch.mean, x, list(range(2, rank)), True)


def _global_largest(n: Node) -> Made:
    x, rank = n.value(0), n.rank()
    return None if x is None or rank is None else n.r.call(torch.amax, x, list(range(2, rank)), True)


LAYERS: dict[str, Callable[[Node], Made]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "GlobalMaxPool": _global_largest,
}
