"""Arithmetic of ONNX: functions of all numbers, sums, and reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reptool.frontends.onnx.node import Made, Node, as_it_is


def _function(function: Callable[..., Any]) -> Callable[[Node], Made]:
    def made(n: Node) -> Made:
        values = [n.value(i) for i in range(len(n))]
        held = [c for i in range(len(n)) if (c := n.constant(i)) is not None]
        if any(v is None for v in values) or not all(c.is_floating_point() for c in held):
            return None  # integers divide otherwise
        return n.r.call(function, *values)

    return made


def _sum(n: Node) -> Made:
    values = [n.value(i) for i in range(len(n))]
    if any(v is None for v in values):
        return None
    total = values[0]
    for value in values[1:]:
        total = n.r.call(torch.add, total, value)
    return n.r.call(torch.clone, total) if len(values) == 1 else total


def _cast_like(n: Node) -> Made:
    given, dtype = n.constant(0), n.r.dtype(n.given(1))
    if given is not None and dtype is not None:
        return n.r.held(given.to(dtype))
    return as_it_is(n) if dtype is not None and dtype == n.r.dtype(n.given(0)) else None


def _dropout(n: Node) -> Made:
    training = n.constant(2) if n.given(2) is not None else torch.zeros(())
    return as_it_is(n) if training is not None and not bool(training) else None


def _reduce(function: Callable[..., Any]) -> Callable[[Node], Made]:
    def made(n: Node) -> Made:
        x, axes, rank = n.value(0), n.ints(1, "axes"), n.rank()
        if x is None or (axes is None and (n.given(1) is not None or rank is None)):
            return None
        if not axes and n.attribute("noop_with_empty_axes", 0):
            return None
        return n.r.call(function, x, list(axes or range(rank or 0)), bool(n.attribute("keepdims", 1)))

    return made


def _norm2(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return torch.linalg.vector_norm(x, 2, axes, keepdim)


def _clip(n: Node) -> Made:
    x = n.value(0)
    limits = [n.constant(i) if n.given(i) is not None else n.attribute(name) for i, name in ((1, "min"), (2, "max"))]
    if x is None or any(n.given(i) is not None and n.constant(i) is None for i in (1, 2)):
        return None
    low, high = (None if v is None else float(v) for v in limits)
    return as_it_is(n) if low is None and high is None else n.r.call(torch.clamp, x, low, high)


ARITHMETIC: dict[str, Callable[[Node], Made]] = {
    "Add": _function(torch.add),
    "Sub": _function(torch.sub),
    "Mul": _function(torch.mul),
    "Div": _function(torch.div),
    "Neg": _function(torch.neg),
    "Sum": _sum,
    "Identity": as_it_is,
    "CastLike": _cast_like,
    "Dropout": _dropout,
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
