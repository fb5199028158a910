"""Upsampling brought to the convolution that reads it: behind what treats every position alike, out of concatenations.

::

    f(U(x))  =  U(f(x))                                          f: the same at every position, of that position alone
    W * cat(U(x), z)  =  W_x * U(x)  +  W_z * z                  W_x, W_z: the columns of W that read x and z

for nearest upsampling `U`. Each rule puts an upsampling right in front of a convolution, with which it is one
transposed convolution (`fusions.resampling.upsample_conv`) when the network is planned once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import fx, nn

from reptool.ir.nodes import name_of
from reptool.ir.shapes import SAME_SHAPE, SAME_SHAPE_MODULES
from reptool.lift.layout.resampling import factors_of
from reptool.models.copies import full_copy
from reptool.refusal import Code, Refusal
from reptool.rules.channelwise import is_positionwise, through
from reptool.rules.layers import axes_of, layer_like
from reptool.rules.rule import Rule, Site, is_kind, written_by

MAX_BETWEEN = 8
ADDED = 7.0
"""What one more addition costs for each element that it gives: itself, and what it moves, as `plan.cost` weighs it."""


class UpsampleLater(Rule):
    """``conv(f(up(x)))`` becomes ``conv(up(f(x)))`` for what treats every position alike.

    Activations, norms in eval mode, pointwise layers: whether something does is measured, not looked up.

    Refuses: `DISTRIBUTE` (what lies between reads more than one position, or other data).

    >>> import reptool
    >>> parts = nn.Upsample(scale_factor=2), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *parts).eval()
    >>> made = reptool.deploy(model, rules=(*reptool.RULES, UpsampleLater()), flatten=True)
    >>> [type(m).__name__ for m in made.modules() if "Conv" in type(m).__name__]
    ['Conv2d', 'ConvTranspose2d']
    """

    name = "upsample_later"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """An upsampling, operations of one value, and a convolution."""
        for node in graph.graph.nodes:
            row = [node] if axes_of(graph, node) and _reads_neighbours(graph, node) else []
            while row and len(row) < MAX_BETWEEN:
                data = [n for n in row[-1].all_input_nodes if n.op != "get_attr"]
                if len(data) != 1:
                    break
                row.append(data[0])
                if _is_upsampling(graph, data[0]):
                    if len(row) > 2:
                        yield Site(graph, *reversed(row))
                    break

    def check(self, site: Site) -> Any:
        """What lies between treats every position alike."""
        up, *between, conv = site.nodes
        axes = axes_of(site.graph, conv)
        if any(written_by(site, n) is not None and n.op != "call_module" for n in between):
            return Refusal(Code.MUTATED, "what lies between writes in place")
        function = through(site, up, between[-1])
        layers = [site.module(n) for n in between if axes_of(site.graph, n) is not None]
        channels = _width(site.graph, up) or (layers[0].in_channels if layers else site.module(conv).in_channels)
        if function is None or not is_positionwise(function, channels, axes or 0):
            return Refusal(Code.DISTRIBUTE, "what lies between the upsampling and the layer reads several positions")
        return True

    def rewrite(self, site: Site, evidence: Any) -> None:
        """The upsampling stands behind it."""
        up, *between, conv = site.nodes
        low: Any = up.args[0]
        for node in between:  # what they wrote into was the upsampled value alone
            if written_by(site, node) is not None:
                module = full_copy(site.module(node))
                module.inplace = False
                site.put(node, module)
        later = site.repeat(conv, up, low, between[-1])
        site.read(conv, between[-1], later)
        site.read(between[0], up, low)


class SplitConcat(Rule):
    """``conv(cat(up(x), z))`` becomes ``conv_x(up(x)) + conv_z(z)``.

    Refuses: `CHANNELS` (groups, parts of an unknown number of channels), `LAYOUT` (another axis than the channels).

    >>> import reptool
    >>> class Decoder(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.low, self.high = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
    ...         self.up, self.conv = nn.Upsample(scale_factor=2), nn.Conv2d(12, 4, 3, padding=1)
    ...     def forward(self, x, z):
    ...         return self.conv(torch.cat([self.up(self.low(x).relu()), self.high(z).relu()], 1))
    >>> x, z = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 8, 8)
    >>> made = reptool.deploy(Decoder().eval(), (x, z), rules=(*reptool.RULES, SplitConcat()), flatten=True)
    >>> any(isinstance(m, nn.ConvTranspose2d) for m in made.modules())
    True
    """

    name = "split_concat"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """A convolution behind a concatenation of which a part is upsampled, and is read by nothing else."""
        for node in graph.graph.nodes:
            if not axes_of(graph, node) or not _reads_neighbours(graph, node):
                continue
            cat = node.args[0]
            if isinstance(cat, fx.Node) and is_kind(graph, cat, ("cat", "concat", "concatenate")):
                parts = cat.args[0] if cat.args else ()
                if isinstance(parts, (tuple, list)) and any(_is_upsampling(graph, p) for p in parts):
                    yield Site(graph, cat, node)

    def check(self, site: Site) -> Any:
        """How many channels each part has."""
        cat, conv = site.nodes
        layer, parts = site.module(conv), list(cat.args[0])  # type: ignore[arg-type]
        dim = cat.kwargs.get("dim", cat.args[1] if len(cat.args) > 1 else 0)
        if dim not in (1, -1 - (axes_of(site.graph, conv) or 0)):
            return Refusal(Code.LAYOUT, "it joins along another axis than the channels")
        if layer.groups != 1 or not all(isinstance(p, fx.Node) for p in parts):
            return Refusal(Code.CHANNELS, "a layer with groups")
        widths = [_width(site.graph, p) for p in parts]
        left = layer.in_channels - sum(w for w in widths if w is not None)
        if widths.count(None) > 1 or left < 0 or (None not in widths and left):
            return Refusal(Code.CHANNELS, "how many channels its parts have is not known")
        return [(p, left if w is None else w) for p, w in zip(parts, widths, strict=True)]

    def rewrite(self, site: Site, evidence: list[tuple[fx.Node, int]]) -> None:
        """One layer for each run of parts of one resolution, and their sum."""
        conv = site.nodes[1]
        layer, start = site.module(conv), 0
        sums: fx.Node | None = None
        for low, held in groupby(evidence, lambda pair: _is_upsampling(site.graph, pair[0])):
            run = list(held)
            for some in [[pair] for pair in run] if low else [run]:
                stop = start + sum(w for _, w in some)
                bias = layer.bias.detach() if layer.bias is not None and sums is None else None
                part = layer_like(layer, layer.weight.detach()[:, start:stop].contiguous(), bias)
                read = [p for p, _ in some]
                value = read[0] if len(read) == 1 else site.insert(conv, torch.cat, read, 1)
                made = site.insert(conv, part, value)
                sums = made if sums is None else site.insert(conv, torch.add, sums, made)
                start = stop
        assert sums is not None
        site.replace(conv, sums)

    def price(self, site: Site, evidence: list[tuple[fx.Node, int]]) -> float:
        """Multiplications saved at a low position and output, beside the additions and what they move."""
        kernel = site.module(site.nodes[1]).kernel_size
        out = 0.0
        for part, width in evidence:
            factors = _factors(site.graph, part)
            if factors is not None:
                along = list(zip(kernel, factors, strict=False))  # of one factor for all axes there are three
                high = prod(f for _, f in along)
                out += width * (prod(k + f - 1 for k, f in along) - high * prod(kernel)) + ADDED * high
        return out


def _reads_neighbours(graph: fx.GraphModule, node: fx.Node) -> bool:
    return any(k > 1 for k in graph.get_submodule(str(node.target)).kernel_size)  # type: ignore[union-attr]


def _factors(graph: fx.GraphModule, node: Any) -> tuple[int, ...] | None:
    """By what a node repeats positions along each axis; None for anything but nearest upsampling."""
    if not isinstance(node, fx.Node):
        return None
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, nn.Upsample) or (node.op == "call_function" and name_of(node) == "interpolate"):
        found = factors_of(node, module)
        return found if found is not None and max(found) > 1 else None
    return None


def _is_upsampling(graph: fx.GraphModule, node: Any) -> bool:
    return _factors(graph, node) is not None


def _width(graph: fx.GraphModule, node: Any) -> int | None:
    """How many channels a value has, where a layer in front of it says so."""
    seen = 0
    while isinstance(node, fx.Node) and seen < 100:
        seen += 1
        if node.op == "call_module":
            module: Any = graph.get_submodule(str(node.target))
            if isinstance(module, nn.modules.conv._ConvNd):
                return int(module.out_channels)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return int(module.num_features)
            if not isinstance(module, (*SAME_SHAPE_MODULES, nn.Upsample)):
                return None
        elif node.op not in ("call_function", "call_method") or name_of(node) not in SAME_SHAPE | {"interpolate"}:
            return None
        node = node.args[0] if node.args else None
    return None
