"""Layers of torch, as rules read and make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.refusal import Code, Refusal
from reptool.runtime.subclass import original_class

LAYERS: dict[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Layers with a weight ``[out, in / groups, ...]``, and their axes behind the channels."""


def axes_of(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """Axes behind the channels of a layer of torch's own, called with one value; None for anything else."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return LAYERS.get(original_class(graph.get_submodule(str(node.target))))


def layer_like(layer: Any, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Any:
    """A layer of the same geometry with another weight and bias, of other numbers of channels and groups maybe."""
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        groups = layer.groups if groups is None else groups
        made = original_class(layer)(
            weight.shape[1] * groups, weight.shape[0], layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, groups, padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def centre_of(layer: Any) -> list[int] | Refusal:
    """For each axis the tap that reads the position that is written, where as many are written as are read."""
    if isinstance(layer, nn.Linear):
        return []
    if any(s != 1 for s in layer.stride):
        return Refusal(Code.STRIDE, f"a layer of stride {tuple(layer.stride)}")
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if isinstance(layer.padding, str):
        before = [s // 2 if layer.padding == "same" else 0 for s in spans]
        after = [s - b if layer.padding == "same" else 0 for s, b in zip(spans, before, strict=True)]
    else:
        before = after = list(layer.padding)
    if any(a + e != s for a, e, s in zip(before, after, spans, strict=True)):
        return Refusal(Code.EXTENT, "a layer writes another number of positions than it reads")
    if any(a % d for a, d in zip(before, layer.dilation, strict=True)):
        return Refusal(Code.EXTENT, "a layer has no tap at the position itself")
    return [a // d for a, d in zip(before, layer.dilation, strict=True)]
