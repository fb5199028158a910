"""A layer as ATen operators: of the training IR, in which a linear layer is one, or of the core that inference uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from reptool.algebra.kernel import Border
from reptool.programs.layers import Piece
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry

aten = torch.ops.aten
Emit = Callable[..., fx.Node]
"""Writes one operator: the operator, then its arguments."""

_CORE_ALONE = ("aten.convolution.default", "aten._native_batch_norm_legit_no_training.default", "aten.addmm.default")
_COMPOSITE = ("aten.conv1d", "aten.conv2d", "aten.conv3d", "aten.linear", "aten.batch_norm")
_PADS = {"reflect": "reflection_pad", "replicate": "replication_pad"}


def is_core(graph: fx.Graph) -> bool:
    """Whether a graph is decomposed into core operators: it has some of them and none that they come from."""
    targets = [str(n.target) for n in graph.nodes if n.op == "call_function"]
    return any(t in _CORE_ALONE for t in targets) and not any(t.startswith(_COMPOSITE) for t in targets)


def why_not(shape: Geometry, core: bool) -> Refusal | None:
    """Why a layer of this geometry is no sequence of operators; None where it is."""
    if shape.kind == "deformable":
        return Refusal(Code.LAYOUT, "a deformable convolution is no operator of ATen")
    if core and "circular" in (shape.padding_mode, shape.outer_mode):
        return Refusal(Code.BORDER_MODE, "the core of ATen has no circular padding")
    return None


def names_of(shape: Geometry) -> tuple[str, ...]:
    """The operators that compute a layer of this geometry, in both IRs."""
    if shape.kind == "linear":
        return "linear", "addmm", "mm"
    return f"conv{'_transpose' if shape.kind == 'transposed' else ''}{len(shape.kernel_size)}d", "convolution"


def emitted(piece: Piece, x: fx.Node, weight: fx.Node, bias: fx.Node | None, emit: Emit, core: bool) -> fx.Node:
    """The output of one operator of a layer.

    Args:
        piece: what is computed.
        x: the value read.
        weight: its parameter.
        bias: its parameter, None for none.
        emit: writes an operator.
        core: whether the operators of the core alone may be used.
    """
    shape, axes = piece.shape, piece.axes
    if shape.kind == "linear":
        return _linear_in_core(x, weight, bias, emit) if core else emit(aten.linear.default, x, weight, bias)
    n = len(shape.kernel_size)
    if shape.kind == "transposed":
        stride, padding, dilation, more = map(list, (shape.stride, shape.padding, shape.dilation, shape.output_padding))
        if core:
            return emit(aten.convolution.default, x, weight, bias, stride, padding, dilation, True, more, shape.groups)
        names = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}
        return emit(names[n], x, weight, bias, stride, padding, more, shape.groups, dilation)
    mode = next((a.border.value for a in axes if a.reads_outside and a.border is not Border.ZEROS), "constant")
    own = mode == "constant" and all(a.before == a.after >= 0 for a in axes)
    if not own:
        x = _padded(x, [p for a in reversed(axes) for p in (a.before, a.after)], mode, n, emit, core)
    padding = [a.before if own else 0 for a in axes]
    stride, dilation = list(shape.stride), list(shape.dilation)
    if core:
        nothing = [0] * n
        return emit(aten.convolution.default, x, weight, bias, stride, padding, dilation, False, nothing, shape.groups)
    conv = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[n]
    return emit(conv, x, weight, bias, stride, padding, dilation, shape.groups)


def dense(x: fx.Node, emit: Emit) -> fx.Node:
    """The value in the order of its axes, of which `view` makes others."""
    if x.meta["val"].is_contiguous():
        return x
    node = emit(aten.clone.default, x)
    node.kwargs = {"memory_format": torch.contiguous_format}
    node.meta["val"] = x.meta["val"].contiguous()
    return node


def _padded(x: fx.Node, pads: list[int], mode: str, axes: int, emit: Emit, core: bool) -> fx.Node:
    if not core:
        return emit(aten.pad.default, x, pads, mode, *((0.0,) if mode == "constant" else ()))
    if mode == "constant":
        return emit(aten.constant_pad_nd.default, x, pads, 0.0)
    return emit(getattr(aten, f"{_PADS[mode]}{axes}d").default, x, pads)


def _linear_in_core(x: fx.Node, weight: fx.Node, bias: fx.Node | None, emit: Emit) -> fx.Node:
    """A linear layer as a product of two matrices."""
    shape, turned = x.meta["val"].shape, emit(aten.permute.default, weight, [1, 0])
    flat = x if len(shape) == 2 else emit(aten.view.default, dense(x, emit), [-1, shape[-1]])
    y = emit(aten.mm.default, flat, turned) if bias is None else emit(aten.addmm.default, bias, flat, turned)
    if len(shape) == 2:
        return y
    sizes: list[Any] = [s if isinstance(s, int) else emit(aten.sym_size.int, x, i) for i, s in enumerate(shape[:-1])]
    return emit(aten.view.default, y, [*sizes, weight.meta["val"].shape[0]])
