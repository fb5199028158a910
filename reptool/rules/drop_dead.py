"""`DropDeadChannels`: channels between two layers that hold a constant, or that nobody reads, go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reptool.fusions.nonlinear.dead_channels import dead_channels, drop_channels
from reptool.refusal import Code, Refusal
from reptool.rules.channelwise import is_by_itself, parameters_between, through
from reptool.rules.layers import axes_of, layer_like
from reptool.rules.rule import Rule, Site

MAX_BETWEEN = 8


@dataclass(frozen=True)
class _Evidence:
    """Which channels are kept, and what the others hold."""

    kept: Tensor
    constant: Tensor


class DropDeadChannels(Rule):
    """Two layers with an activation between them lose the channels that are dead, as pruning leaves them.

    Refuses: `CHANNELS` (groups, no dead channel, all dead), `DISTRIBUTE` (what lies between does not treat each channel
    by itself), `BORDER_BIAS` (the second layer pads zeros beside a constant).

    >>> import reptool
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    >>> _ = model[0].weight.data[:6].zero_()
    >>> made = reptool.deploy(model, rules=(*reptool.RULES, DropDeadChannels()), flatten=True)
    >>> [m.out_channels for m in made.modules() if isinstance(m, nn.Conv2d)]
    [2, 4]
    """

    name = "drop_dead_channels"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """A layer, operations of one value, and a layer of as many axes."""
        for node in graph.graph.nodes:
            axes = axes_of(graph, node)
            row = [node]
            while axes is not None and len(row) < MAX_BETWEEN:
                data = [n for n in row[-1].all_input_nodes if n.op != "get_attr"]
                if len(data) != 1:
                    break
                row.append(data[0])
                if axes_of(graph, data[0]) is not None:
                    if axes_of(graph, data[0]) == axes:
                        yield Site(graph, *reversed(row))
                    break

    def check(self, site: Site) -> Any:
        """Some channels are dead, and their constant is the same at the border."""
        first, second = site.module(site.nodes[0]), site.module(site.nodes[-1])
        axes = axes_of(site.graph, site.nodes[0]) or 0
        if getattr(first, "groups", 1) != 1 or getattr(second, "groups", 1) != 1:
            return Refusal(Code.CHANNELS, "a layer with groups")
        if first.weight.shape[0] != second.weight.shape[1]:
            return Refusal(Code.CHANNELS, "what lies between changes the number of channels")
        constant, unread = dead_channels(first.weight.detach(), second.weight.detach())
        if not bool((constant | unread).any()):
            return Refusal(Code.CHANNELS, "no channel is dead")
        if bool((constant | unread).all()):
            return Refusal(Code.CHANNELS, "every channel is dead")
        function = through(site, site.nodes[0], site.nodes[-2])
        if function is None or parameters_between(site) or not is_by_itself(function, len(constant), axes):
            return Refusal(Code.DISTRIBUTE, "what lies between does not treat each channel by itself")
        held = self._held(first, function, axes)
        if held is None:
            return Refusal(Code.DISTRIBUTE, "what lies between does not make a constant of a constant")
        shows = constant & ~unread & (held != 0)
        if bool(shows.any()) and getattr(second, "padding_mode", "zeros") == "zeros" and _pads(second):
            return Refusal(Code.BORDER_BIAS, "the second layer pads with zeros what is constant and not zero")
        return _Evidence(~(constant | unread), torch.where(unread, 0.0, held))

    @staticmethod
    def _held(first: Any, function: Any, axes: int) -> Tensor | None:
        """What each channel would hold behind the activation if it held nothing but its bias."""
        count = first.weight.shape[0]
        bias = torch.zeros(count, dtype=torch.float64) if first.bias is None else first.bias.detach().double()
        out = function(bias.reshape(1, -1, *[1] * axes).expand(1, count, *(7, 6, 5)[:axes]))
        flat = out.reshape(count, -1)
        return flat[:, 0].clone() if bool((flat == flat[:, :1]).all()) else None

    def rewrite(self, site: Site, evidence: _Evidence) -> None:
        """Both layers become narrower."""
        first, second = site.module(site.nodes[0]), site.module(site.nodes[-1])
        b1, b2 = (None if p is None else p.detach() for p in (first.bias, second.bias))
        weights = first.weight.detach(), b1, second.weight.detach(), b2
        w1, b1, w2, b2 = drop_channels(*weights, evidence.kept, evidence.constant)
        site.put(site.nodes[0], layer_like(first, w1, b1))
        site.put(site.nodes[-1], layer_like(second, w2, b2))


def _pads(layer: Any) -> bool:
    """Whether a layer may read beyond its border."""
    padding = getattr(layer, "padding", 0)
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple) else bool(padding)
