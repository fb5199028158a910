"""Layers of torch, as rules read and make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

LAYERS: dict[type[nn.Module], int] = {nn.Linear: 0, nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
"""Layers with a weight ``[out, in / groups, ...]``, and their axes behind the channels."""


def axes_of(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """Axes behind the channels of a layer of torch's own, called with one value; None for anything else."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return LAYERS.get(type(graph.get_submodule(str(node.target))))


def layer_like(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """A layer of the same geometry with another weight and bias, of other numbers of channels maybe."""
    options: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], **options)
    else:
        made = type(layer)(
            weight.shape[1] * layer.groups, weight.shape[0], layer.kernel_size, layer.stride, layer.padding,
            layer.dilation, layer.groups, padding_mode=layer.padding_mode, **options,
        )  # fmt: skip
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made
