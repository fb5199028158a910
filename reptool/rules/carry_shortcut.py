"""`CarryShortcut`: a shortcut around several layers goes through them, as more channels (paradigm 6b)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.fusions.nonlinear.carried_shortcut import Widened, carry_shortcut, sides_of_slopes
from reptool.refusal import Code, Refusal
from reptool.rules.channelwise import SAMPLED, Function, equal, is_elementwise, slopes, through
from reptool.rules.layers import axes_of, centre_of, layer_like
from reptool.rules.rule import Rule, Site, is_kind
from reptool.runtime.hooks import set_guard

MAX_ROW = 24


@dataclass(frozen=True)
class _Parts:
    """A site, in parts.

    Args:
        main: layers and what lies between them.
        shortcut: activations on the shortcut.
        x: what both read.
        layers: the layers among `main`.
        between: the others, behind the first layer.
        axes: axes behind the channels.
    """

    main: list[fx.Node]
    shortcut: list[fx.Node]
    x: fx.Node
    layers: list[fx.Node]
    between: list[fx.Node]
    axes: int


@dataclass(frozen=True)
class _Evidence:
    """What each layer becomes, and the slopes of the copies in each PReLU that has some for each channel."""

    parts: _Parts
    layers: list[Widened]
    slopes: dict[fx.Node, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Copies:
    """How copies of the shortcut pass the activations; see `carry_shortcut`."""

    signs: tuple[float, ...]
    back: Tensor
    slopes: dict[fx.Node, Tensor]


class CarryShortcut(Rule):
    """``g(x) + s(x)`` becomes ``g'(x)``, for layers `g` with activations between them and a shortcut `s` around them.

    Exact where the shortcut has the same activations as the layers, in the same order, whatever they are; and where all
    have one slope on either side of zero (ReLU, leaky ReLU, PReLU), with any of them or none on the shortcut. The
    layers become wider, and so it is dearer nearly everywhere: it acts with `dearer=True`, or with ``force=True``.

    Refuses: `DISTRIBUTE` (activations that lose what the shortcut needs, or do not treat each value by itself),
    `CHANNELS`, `STRIDE`, `EXTENT` (a layer that does not hand on a value at its own position), `MUTATED`.

    Args:
        dearer: act where there are more multiplications than before.

    >>> import reptool
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    ...     def forward(self, x):
    ...         return self.two(self.one(x).relu()) + x
    >>> made = reptool.deploy(Block().eval(), rules=(*reptool.RULES, CarryShortcut(dearer=True)), flatten=True)
    >>> [(m.in_channels, m.out_channels) for m in made.modules() if isinstance(m, nn.Conv2d)]
    [(8, 24), (24, 8)]
    """

    name = "carry_shortcut"

    def __init__(self, dearer: bool = False) -> None:
        self.dearer = dearer

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        """A sum of layers in a row and of what they read."""
        for node in graph.graph.nodes:
            if not is_kind(graph, node, ("add", "iadd", "add_")) or len(node.args) != 2 or node.kwargs:
                continue
            parts = _parts(graph, node)
            if parts is not None and len(parts.layers) > 1:
                yield Site(graph, *sorted([*parts.main, *parts.shortcut], key=_order(graph)), node)

    def check(self, site: Site) -> Any:
        """Every layer hands on a value at its own position, and what lies between can be undone or is on both sides."""
        parts = _parts(site.graph, site.nodes[-1])
        assert parts is not None
        lead = parts.main[: parts.main.index(parts.layers[0])]
        layers = [site.module(n) for n in parts.layers]
        wide = layers[0].weight.shape[1] * getattr(layers[0], "groups", 1)
        if lead and not _is_identity(_function(site, parts.x, lead), wide, parts.axes):
            return Refusal(Code.DISTRIBUTE, "something stands between the shortcut and the first layer")
        if layers[-1].weight.shape[0] != wide:
            return Refusal(Code.CHANNELS, f"{layers[-1].weight.shape[0]} channels and a shortcut of {wide}")
        centres = [centre_of(layer) for layer in layers]
        refused = next((c for c in centres if isinstance(c, Refusal)), None)
        copies = refused or _copies(site, parts, wide)
        if isinstance(copies, Refusal):
            return copies
        made = carry_shortcut(
            [layer.weight.detach() for layer in layers],
            [None if layer.bias is None else layer.bias.detach() for layer in layers],
            [getattr(layer, "groups", 1) for layer in layers],
            centres=[c for c in centres if not isinstance(c, Refusal)], signs=copies.signs, back=copies.back,
        )  # fmt: skip
        return _Evidence(parts, made, copies.slopes)

    def rewrite(self, site: Site, evidence: _Evidence) -> None:
        """The layers become wider, and the addition goes."""
        parts = evidence.parts
        for node, wide in zip(parts.layers, evidence.layers, strict=True):
            site.put(node, layer_like(site.module(node), wide.weight, wide.bias, wide.groups))
        for node, copied in evidence.slopes.items():
            in_front = [n for n in parts.layers if parts.main.index(n) < parts.main.index(node)]
            site.put(node, _prelu(site.module(node), evidence.layers[len(in_front) - 1], copied, parts.axes + 2))
        site.replace(site.nodes[-1], parts.main[-1])

    def price(self, site: Site, evidence: _Evidence) -> float:
        """The multiplications at each position that come with the copies."""
        before = sum(site.module(n).weight.numel() for n in evidence.parts.layers)
        after = sum(layer.weight.numel() for layer in evidence.layers)
        return -1.0 if self.dearer else float(after - before)


def _order(graph: fx.GraphModule) -> Any:
    position = {n: i for i, n in enumerate(graph.graph.nodes)}
    return position.__getitem__


def _parts(graph: fx.GraphModule, node: fx.Node) -> _Parts | None:
    """A sum as a row of layers and a shortcut around them, whichever side either stands on."""
    given = [a for a in node.args if isinstance(a, fx.Node)]
    for one, other in (given, given[::-1]) if len(given) == 2 else ():
        shortcut = _row(graph, other, layers=False)
        main = _row(graph, one, layers=True)
        x = next((n for n in shortcut if n in main), None)
        if x is None or axes_of(graph, one) is None:
            continue
        front, side = main[: main.index(x)][::-1], shortcut[: shortcut.index(x)][::-1]
        layers = [n for n in front if axes_of(graph, n) is not None]
        axes = {axes_of(graph, n) for n in layers}
        if len(axes) == 1:
            between = [n for n in front[front.index(layers[0]) :] if n not in layers]
            return _Parts(front, side, x, layers, between, axes.pop() or 0)
    return None


def _row(graph: fx.GraphModule, node: fx.Node, layers: bool) -> list[fx.Node]:
    """A value and what it is made of, one by one, as far as each reads one value (and no layer, unless `layers`)."""
    row = [node]
    while len(row) < MAX_ROW and (layers or axes_of(graph, row[-1]) is None):
        data = [n for n in row[-1].all_input_nodes if n.op != "get_attr"]
        if len(data) != 1:
            break
        row.append(data[0])
    return row


# --- what passes the activations
def _copies(site: Site, parts: _Parts, channels: int) -> _Copies | Refusal:
    """Which copies of the shortcut pass the activations, and what each is worth behind them."""
    own = {n for n in parts.between if _own_slopes(site, n)}
    between, shortcut = ([n for n in row if not _handed_on(site, n)] for row in (parts.between, parts.shortcut))
    for node in between:
        function = _function(site, node.all_input_nodes[0], [node])
        if node not in own and (function is None or not is_elementwise(function, parts.axes)):
            return Refusal(Code.DISTRIBUTE, f"{node.name} does not treat each value by itself, all alike")
    pairs = list(zip(between, shortcut, strict=False))
    if len(between) == len(shortcut) and all(_same(site, a, b) for a, b in pairs):
        copied = {
            a: site.module(b).weight.detach().expand(channels) for a, b in pairs if a in own or not equal(site, a, b)
        }
        return _Copies((1.0,), torch.ones(channels, 1, dtype=torch.float64), copied)
    unit = {n: torch.ones(channels, dtype=torch.float64) for n in own}
    lost = _slopes_of(site, [n for n in between if n not in own], SAMPLED, parts.axes)
    wanted = _slopes_of(site, shortcut, channels, parts.axes)
    if lost is None or wanted is None:
        return Refusal(Code.DISTRIBUTE, "the shortcut has other activations than the layers, not all of two slopes")
    lost = lost[:1].expand(channels, 2)
    if _never_negative(site, parts.x, channels, parts.axes):
        lost, wanted = (torch.stack([t[:, 0], t[:, 0]], 1) for t in (lost, wanted))
    found = sides_of_slopes(lost, wanted)
    if found is None:
        return Refusal(Code.DISTRIBUTE, "the activations between the layers lose what the shortcut needs")
    return _Copies(*found, unit)


def _slopes_of(site: Site, row: Sequence[fx.Node], channels: int, axes: int) -> Tensor | None:
    """The slopes of operations in a row, all together; one for none."""
    total = torch.ones(channels, 2, dtype=torch.float64)
    for node in row:
        function = _function(site, node.all_input_nodes[0], [node])
        own = None if function is None else slopes(function, channels, axes)
        if own is None:
            return None
        swapped = torch.where(total >= 0, own, own.flip(1))  # a negative slope comes to the other side
        total = total * swapped
    return total


def _never_negative(site: Site, x: fx.Node, channels: int, axes: int) -> bool:
    """Whether what the layers read comes out of an operation whose slopes leave nothing below zero."""
    data = [n for n in x.all_input_nodes if n.op != "get_attr"]
    known = len(data) == 1 and axes_of(site.graph, x) is None
    function = _function(site, data[0], [x]) if known else None
    own = None if function is None else slopes(function, channels, axes)
    return own is not None and bool((own[:, 0] >= 0).all() and (own[:, 1] <= 0).all())


def _function(site: Site, source: fx.Node, row: Sequence[fx.Node]) -> Function | None:
    """Operations in a row, as a function of what the first one reads."""
    return through(Site(site.graph, source, *row), source, row[-1])


def _is_identity(function: Function | None, channels: int, axes: int) -> bool:
    """Whether a function gives back what it is given."""
    found = None if function is None else slopes(function, channels, axes)
    return found is not None and bool((found == 1).all())


def _handed_on(site: Site, node: fx.Node) -> bool:
    """Whether an operation is there and does nothing: a dropout, or what stands for a layer that went elsewhere."""
    module = site.module(node) if node.op == "call_module" else None
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and not module.training
    return dropout or isinstance(module, nn.Identity)


def _own_slopes(site: Site, node: fx.Node) -> bool:
    """Whether an operation is a PReLU with a slope for each channel."""
    module = site.module(node) if node.op == "call_module" else None
    return type(module) is nn.PReLU and module.weight.numel() > 1


def _same(site: Site, one: fx.Node, other: fx.Node) -> bool:
    """Whether two operations are the same one, or two PReLUs."""
    kinds = [type(site.module(n)) if n.op == "call_module" else None for n in (one, other)]
    return kinds == [nn.PReLU, nn.PReLU] or equal(site, one, other)


def _prelu(module: Any, wide: Widened, copied: Tensor, rank: int) -> nn.PReLU:
    """A PReLU for the channels of a layer and its copies."""
    weight = module.weight.detach()
    made = nn.PReLU(wide.weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        made.weight[wide.originals] = weight.expand(len(wide.originals))
        made.weight[wide.copies] = copied[:, None].to(weight).expand(wide.copies.shape)
    set_guard(made, rank)
    return made
