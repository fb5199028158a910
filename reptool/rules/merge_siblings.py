"""`MergeSiblings`: parallel layers of one input with the same activation behind each become one layer."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reptool.fusions.nonlinear.siblings import merge_siblings
from reptool.refusal import Code, Refusal
from reptool.rules.channelwise import equal, is_elementwise, through
from reptool.rules.layers import axes_of, layer_like
from reptool.rules.rule import Rule, Site
from reptool.runtime.hooks import set_guard
from reptool.runtime.subclass import original_class


@dataclass(frozen=True)
class _Evidence:
    """The layer, the channels of each sibling, and the rank for which alone a concatenation is one of channels."""

    weight: Tensor
    bias: Tensor | None
    channels: list[slice]
    axes: int
    rank: int | None


class MergeSiblings(Rule):
    """``a(f(x)), a(g(x))`` become slices of ``a(h(x))``; their concatenation is all of it.

    Layers of one geometry that read one value, each with the same elementwise activation behind it. As many
    multiplications as before, one layer and one activation; whether it is faster is a question of measurement.

    Refuses: `CHANNELS` (groups), `EXTENT` (another geometry), `DISTRIBUTE` (other activations, or one that mixes
    values), `RANK_UNKNOWN`.

    >>> import reptool
    >>> from torch import nn
    >>> class Pair(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
    ...     def forward(self, x):
    ...         return torch.cat([self.a(x).relu(), self.b(x).relu()], 1)
    >>> made = reptool.deploy(Pair().eval(), rules=(*reptool.RULES, MergeSiblings()), flatten=True)
    >>> [m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)]
    [9]
    """

    name = "merge_siblings"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """Layers that read one value, each with one reader; the activations behind them are what others read."""
        readers: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in graph.graph.nodes:
            if axes_of(graph, node) is not None and len(node.users) == 1:
                readers[node.args[0]].append(node)
        for layers in readers.values():
            behind = [next(iter(n.users)) for n in layers]
            pairs = zip(layers, behind, strict=True)
            if len(layers) > 1 and all(b.op != "output" and _varying(b) == [n] for n, b in pairs):
                given = {*behind, *_joined(behind, axes_of(graph, layers[0]) or 0)}
                ordered = [n for n in graph.graph.nodes if n in given]
                yield Site(graph, *layers, *ordered, outputs=len(ordered))

    def check(self, site: Site) -> Any:
        """All layers have one geometry, and all activations are one."""
        layers, behind = _halves(site)
        modules = [site.module(n) for n in layers]
        axes = axes_of(site.graph, layers[0]) or 0
        if any(getattr(m, "groups", 1) != 1 for m in modules):
            return Refusal(Code.CHANNELS, "a layer with groups")
        if any(_geometry(m) != _geometry(modules[0]) for m in modules):
            return Refusal(Code.EXTENT, "layers of several geometries")
        if not all(equal(site, behind[0], b) for b in behind[1:]):
            return Refusal(Code.DISTRIBUTE, "the layers have different operations behind them")
        function = through(Site(site.graph, layers[0], behind[0]), layers[0], behind[0])
        if function is None or not is_elementwise(function, axes):
            return Refusal(Code.DISTRIBUTE, f"{behind[0].name} does not treat each value by itself, all alike")
        biases = [None if m.bias is None else m.bias.detach() for m in modules]
        rank = axes + 2 if any(_dim(n) == 1 for n in _joined(behind, axes)) else None
        if axes == 0 and rank is not None:
            return Refusal(Code.RANK_UNKNOWN, "concatenated along the channels at some ranks alone")
        return _Evidence(*merge_siblings([m.weight.detach() for m in modules], biases), axes, rank)

    def rewrite(self, site: Site, evidence: _Evidence) -> None:
        """The first layer becomes all of them; the others are slices behind the activation."""
        layers, behind = _halves(site)
        first, last = layers[0], behind[0]
        made = layer_like(site.module(first), evidence.weight, evidence.bias)
        if evidence.rank is not None:
            set_guard(made, evidence.rank)
        layer = site.insert(first, made, first.args[0])
        whole = site.repeat(first, last, first, layer)
        joined = _joined(behind, evidence.axes)
        for node in joined:
            site.replace(node, whole)
        for node, channels in zip(behind, evidence.channels, strict=True):
            if any(n not in joined for n in node.users):
                key = (Ellipsis, channels, *[slice(None)] * evidence.axes)
                site.replace(node, site.insert(first, operator.getitem, whole, key))


def _halves(site: Site) -> tuple[list[fx.Node], list[fx.Node]]:
    """The layers, and the activation behind each."""
    layers = list(site.nodes[: -site.outputs])
    return layers, [next(iter(n.users)) for n in layers]


def _varying(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def _geometry(layer: Any) -> Any:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "in_channels", "in_features")
    return [original_class(layer), *(getattr(layer, name, None) for name in names)]


def _joined(parts: list[fx.Node], axes_behind: int) -> list[fx.Node]:
    """The concatenations of these values along the channels, all of them in order and nothing else."""
    axes = (1, -1 - axes_behind)
    found = [n for n in parts[0].users if n.target in (torch.cat, torch.concat, torch.concatenate) and n.args]
    return [n for n in found if list(n.args[0]) == parts and _dim(n) in axes]  # type: ignore[arg-type]


def _dim(node: fx.Node) -> Any:
    """The axis of a concatenation."""
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
