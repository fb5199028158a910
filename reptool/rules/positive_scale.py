"""`PositiveScale`: a scale behind an activation goes into the layer in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reptool.fusions.nonlinear.positive_scale import scale_before_activation
from reptool.refusal import Code, Refusal
from reptool.rules.channelwise import is_homogeneous, through
from reptool.rules.layers import axes_of, layer_like
from reptool.rules.rule import Rule, Site, is_kind
from reptool.runtime.hooks import set_guard

MAX_BETWEEN = 8


@dataclass(frozen=True)
class _Evidence:
    """The scale of each channel, and the rank of the input for which alone it is one for each channel."""

    scale: Tensor
    rank: int | None


class PositiveScale(Rule):
    """``s f(layer(x))`` becomes ``f(layer'(x))`` for activations and poolings that are positively homogeneous.

    Refuses: `DISTRIBUTE` (a negative factor, an operation that is not homogeneous), `BROADCAST`, `CONSTANT_VALUE`.

    >>> import reptool
    >>> from torch import nn
    >>> class Scaled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.rand(4, 1, 1))
    ...     def forward(self, x):
    ...         return self.conv(x).relu() * self.scale
    >>> made = reptool.deploy(Scaled().eval(), rules=(*reptool.RULES, PositiveScale()), flatten=True)
    >>> [n.name for n in made.graph.nodes if n.op == "call_function"]
    []
    """

    name = "positive_scale"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """A layer, operations of one value, and a product with a constant."""
        for node in graph.graph.nodes:
            if not is_kind(graph, node, ("mul", "multiply", "imul", "mul_")) or len(node.args) != 2:
                continue
            data = [a for a in node.args if isinstance(a, fx.Node) and a.op != "get_attr"]
            row = [node]
            while len(data) == 1 and len(row) < MAX_BETWEEN:
                row.append(data[0])
                if axes_of(graph, data[0]) is not None:
                    yield Site(graph, *reversed(row))
                    break
                data = [n for n in data[0].all_input_nodes if n.op != "get_attr"]

    def check(self, site: Site) -> Any:
        """The factor is one for each channel and not negative, and what lies between is homogeneous."""
        layer, *between, product = site.nodes
        if not between:
            return Refusal(Code.DISTRIBUTE, "there is nothing between the layer and the scale to move it through")
        constant = next(a for a in product.args if not (isinstance(a, fx.Node) and a.op != "get_attr"))
        value, axes = site.constant(constant), axes_of(site.graph, layer)
        if value is None or axes is None:
            return Refusal(Code.CONSTANT_VALUE, "what it is multiplied by is not known")
        channels = site.module(layer).weight.shape[0]
        scale = _for_each_channel(torch.as_tensor(value, dtype=torch.float64), channels, axes)
        if scale is None:
            return Refusal(Code.BROADCAST, f"a factor of shape {tuple(torch.as_tensor(value).shape)} varies elsewhere")
        if not bool((scale >= 0).all()):
            return Refusal(Code.DISTRIBUTE, f"a factor is negative ({float(scale.min()):g})")
        function = through(site, layer, between[-1])
        if function is None or not is_homogeneous(function, channels, axes):
            return Refusal(Code.DISTRIBUTE, "what lies between is not positively homogeneous, channel by channel")
        rank = torch.as_tensor(value).dim()
        return _Evidence(scale, rank if rank > axes + 1 else None)

    def rewrite(self, site: Site, evidence: _Evidence) -> None:
        """The layer takes the scale."""
        first = site.module(site.nodes[0])
        weight, bias = scale_before_activation(first.weight.detach(), _detached(first.bias), evidence.scale)
        made = layer_like(first, weight, bias)
        if evidence.rank is not None:
            set_guard(made, evidence.rank)
        site.put(site.nodes[0], made)
        site.replace(site.nodes[-1], site.nodes[-2])


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()


def _for_each_channel(value: Tensor, channels: int, axes: int) -> Tensor | None:
    """A constant as one factor for each channel; None where it varies along another axis, or adds one."""
    if value.numel() == 1 and value.dim() <= axes + 2:
        return value.reshape(1).expand(channels).clone()
    at = value.dim() - 1 - axes
    if at not in (0, 1) or value.shape[at] != channels or value.numel() != channels:
        return None
    return value.reshape(channels)
