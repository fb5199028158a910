"""Wrong rules, each in one way in which people are wrong, beside right ones from which they differ by that alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reptool import Refusal
from reptool.fusions import carry_shortcut
from reptool.rules import (
    CarryShortcut,
    Conv,
    DropDeadChannels,
    Lift,
    Linear,
    MergeSiblings,
    PositiveScale,
    Rule,
    Site,
    chain,
)
from reptool.rules.layers import layer_like
from tests.rules.networks import Around, Scaled

Pick = Callable[[Any], Any]


# --- modules, and what lifts say of them
class Own(nn.Module):
    """A convolution of which nobody knows, of all kinds."""

    def __init__(self, width: int, groups: int, stride: int, padding: int, dilation: int, mode: str) -> None:
        super().__init__()
        self.logs = nn.Parameter(torch.randn(2 * width, width // groups, 3, 2))
        self.bias = nn.Parameter(torch.randn(2 * width))
        self.groups, self.stride, self.padding, self.dilation, self.mode = groups, stride, padding, dilation, mode
        self.gain = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data, and compute the same either way."""
        taps = self.logs.exp() * (self.gain if float(x.detach().sum()) < 1e300 else self.gain + 0)
        x = F.pad(x, [self.padding] * 4, mode={"zeros": "constant"}.get(self.mode, self.mode))
        return F.conv2d(x, taps, self.bias, self.stride, 0, self.dilation, self.groups)


def owns(pick: Pick) -> nn.Module:
    """One of all kinds."""
    return Own(pick([2, 4]), pick([1, 2]), pick([1, 2]), pick([1, 0]), pick([1, 2]), pick(["zeros", "reflect"]))


def said(module: Any) -> Conv:
    """What it is."""
    return Conv(
        module.logs.exp() * module.gain, module.bias, module.stride, module.padding, module.dilation, module.groups,
        module.mode,
    )  # fmt: skip


def _between_groups(m: Any) -> Tensor:
    """Rows of the groups in turns."""
    taps = m.logs.exp()
    return taps.reshape(m.groups, -1, *taps.shape[1:]).transpose(0, 1).reshape(taps.shape)


LIFTED: dict[str, Callable[[Any], Any]] = {
    "border mode": lambda m: replace(said(m), padding_mode="zeros"),
    "group order": lambda m: replace(said(m), weight=_between_groups(m)),
    "groups": lambda m: replace(said(m), weight=said(m).weight.repeat(1, m.groups, 1, 1), groups=1),
    "forgotten bias": lambda m: replace(said(m), bias=None),
    "flipped kernel": lambda m: replace(said(m), weight=m.logs.exp().flip(-1)),
    "wrong axis": lambda m: replace(said(m), weight=m.logs.exp().transpose(2, 3)),
    "forgotten stride": lambda m: replace(said(m), stride=1),
    "forgotten dilation": lambda m: replace(said(m), dilation=1),
    "off-by-one crop": lambda m: replace(said(m), padding=[(m.padding - 1, m.padding + 1), (m.padding, m.padding)]),
    "float32 folding": lambda m: replace(said(m), weight=m.logs.float().exp()),
    "broadcast of size one": lambda m: replace(said(m), bias=m.bias[:1].expand(len(m.bias))),
    "dropped attribute": lambda m: replace(said(m), weight=m.logs.exp()),
}


class Rude(nn.Module):
    """Twice its input, and three times what it was given afterwards."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes, self.weight = writes, nn.Parameter(torch.full((3, 1, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data."""
        y = x * self.weight.flatten().view(-1, 1, 1) if float(x.detach().sum()) < 1e300 else 2 * x
        return x.mul_(2.0) if self.writes else y


class Handed(nn.Module):
    """Its input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data."""
        return x if float(x.detach().sum()) < 1e300 else 2 * x


class Last(nn.Module):
    """A linear layer along the first axis behind the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data."""
        w = self.weight if float(x.detach().sum()) < 1e300 else self.weight + 0
        return torch.einsum("bc...,oc->bo...", x, w)


# --- rewrites
FACTORS = [torch.rand(3, 1, 1) + 0.1, torch.rand(1, 3, 1, 1) + 0.1]


def scaled(pick: Pick) -> nn.Module:
    """A factor behind an activation and a pooling."""
    between = nn.Sequential(nn.ReLU(), pick([nn.Identity(), nn.MaxPool2d(2)]))
    return Scaled(nn.Conv2d(2, 3, 3, padding=1), between, pick(FACTORS))


def along_width(pick: Pick) -> tuple[nn.Module, Tensor]:
    """A factor along another axis, as wide as there are channels."""
    layer = nn.Conv2d(2, 3, 1)
    return Scaled(layer, nn.ReLU(), torch.rand(1, 1, 3) + 0.1), torch.randn(2, 2, 5, 3)


class Careless(PositiveScale):
    """The right rule; the wrong ones leave out one thing each."""

    name = "careless"


class AnySign(Careless):
    """Takes negative factors."""

    def check(self, site: Site) -> Any:
        found = super().check(site)
        if isinstance(found, Refusal) and "negative" in found.sentence:
            value = site.constant(next(a for a in site.nodes[-1].args if getattr(a, "op", "") == "get_attr"))
            return replace(self._some(), scale=torch.as_tensor(value).reshape(-1))
        return found

    @staticmethod
    def _some() -> Any:
        from reptool.rules.positive_scale import _Evidence

        return _Evidence(torch.ones(1), None)

    def rewrite(self, site: Site, evidence: Any) -> None:
        first = site.module(site.nodes[0])
        column = evidence.scale.reshape(-1, *[1] * (first.weight.dim() - 1))
        bias = None if first.bias is None else first.bias * evidence.scale
        site.put(site.nodes[0], layer_like(first, first.weight * column, bias))
        site.replace(site.nodes[-1], site.nodes[-2])


class AnyActivation(AnySign):
    """Does not ask what lies between."""

    def check(self, site: Site) -> Any:
        found = super().check(site)
        if isinstance(found, Refusal) and "homogeneous" in found.sentence:
            value = site.constant(next(a for a in site.nodes[-1].args if getattr(a, "op", "") == "get_attr"))
            return replace(self._some(), scale=torch.as_tensor(value).reshape(-1))
        return found


class NoBias(Careless):
    """Scales the weight alone."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        first = site.module(site.nodes[0])
        weight = first.weight * evidence.scale.reshape(-1, 1, 1, 1)
        site.put(site.nodes[0], layer_like(first, weight, first.bias))
        site.replace(site.nodes[-1], site.nodes[-2])


class NoRank(Careless):
    """Forgets that the factor has a batch axis."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        super().rewrite(site, replace(evidence, rank=None))


class FirstOfAll(Careless):
    """One factor for all channels."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        super().rewrite(site, replace(evidence, scale=evidence.scale[:1].expand(len(evidence.scale)).clone()))


class AnyAxis(AnySign):
    """Takes any constant that has as many numbers as there are channels."""

    def check(self, site: Site) -> Any:
        found = Careless.check(self, site)
        if isinstance(found, Refusal) and "varies" in found.sentence:
            value = site.constant(next(a for a in site.nodes[-1].args if getattr(a, "op", "") == "get_attr"))
            return replace(self._some(), scale=torch.as_tensor(value).reshape(-1))
        return found


class InPlace(Careless):
    """Writes into the weight that is there."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        first = site.module(site.nodes[0])
        with torch.no_grad():
            first.weight.mul_(evidence.scale.reshape(-1, 1, 1, 1))
            first.bias.mul_(evidence.scale)
        site.replace(site.nodes[-1], site.nodes[-2])


class Narrow(Careless):
    """Folds in float32."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        first = site.module(site.nodes[0])
        weight = first.weight.float() * evidence.scale.float().reshape(-1, 1, 1, 1)
        site.put(site.nodes[0], layer_like(first, weight.double(), first.bias * evidence.scale))
        site.replace(site.nodes[-1], site.nodes[-2])


class Remembers(Careless):
    """Hands over what it found in an attribute."""

    def check(self, site: Site) -> Any:
        self.found = super().check(site)
        return self.found

    def rewrite(self, site: Site, evidence: Any) -> None:
        super().rewrite(site, self.found)


class Sleeps(Careless):
    """Looks for a product where there is none."""

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        yield from chain(graph, "mul", nn.Conv2d)


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 3, 1), nn.Parameter(torch.rand(3, 1, 1) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Scaled once."""
        return self.conv(self.conv(x).relu() * self.factor)  # type: ignore[no-any-return]


class Shared(Careless):
    """Puts the new layer where the old one stood, for whoever calls it."""

    def rewrite(self, site: Site, evidence: Any) -> None:
        path = str(site.nodes[0].target)
        super().rewrite(site, evidence)
        made = site.graph.get_submodule(str(site.nodes[0].target))
        site.graph._modules[path] = made


class OnePool(Rule):
    """Two poolings as one, whatever happens to the last row."""

    name = "one_pool"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        yield from chain(graph, nn.MaxPool2d, nn.MaxPool2d)

    def check(self, site: Site) -> Any:
        return True

    def rewrite(self, site: Site, evidence: Any) -> None:
        one, two = (site.module(n) for n in site.nodes)
        made = nn.MaxPool2d(one.kernel_size * two.kernel_size, ceil_mode=two.ceil_mode)
        site.put(site.nodes[1], made)
        site.nodes[1].replace_input_with(site.nodes[0], site.nodes[0].args[0])  # type: ignore[arg-type]


def pools(pick: Pick) -> nn.Module:
    """Two poolings that cut rows off, or that do not."""
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=pick([False, True])))


class Branches(nn.Module):
    """Activations of two layers, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenated."""
        return torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)


class OneRelu(Rule):
    """``cat(relu(a), relu(b)) = relu(cat(b, a))``, which it is not."""

    name = "one_relu"

    def match(self, graph: fx.GraphModule) -> Iterator[Site]:
        for node in graph.graph.nodes:
            parts = node.args[0] if node.target is torch.cat else ()
            if parts and all(n.target is torch.relu for n in parts):
                yield Site(graph, *parts, node)

    def check(self, site: Site) -> Any:
        return True

    def rewrite(self, site: Site, evidence: Any) -> None:
        *parts, cat = site.nodes
        made = site.insert(cat, torch.cat, [p.args[0] for p in reversed(parts)], 1)
        site.replace(cat, site.insert(cat, torch.relu, made))


def pruned(pick: Pick) -> nn.Module:
    """Two channels that hold a constant."""
    activation = pick([nn.Sigmoid(), nn.ReLU()])
    model: Any = nn.Sequential(nn.Conv2d(2, 4, 3), activation, nn.Conv2d(4, 2, 3))
    model[0].weight.data[:2] = 0
    return model  # type: ignore[no-any-return]


class NoConstant(DropDeadChannels):
    """Forgets what the channels hold."""

    name = "no_constant"

    def rewrite(self, site: Site, evidence: Any) -> None:
        super().rewrite(site, replace(evidence, constant=0 * evidence.constant))


class NoBorder(DropDeadChannels):
    """Does not look at the padding behind."""

    name = "no_border"

    def check(self, site: Site) -> Any:
        second = site.module(site.nodes[-1])
        kept, second.padding = second.padding, (0, 0)
        found = super().check(site)
        second.padding = kept
        return found


class BeforeActivation(DropDeadChannels):
    """Takes what the channels hold in front of the activation."""

    name = "before_activation"

    def rewrite(self, site: Site, evidence: Any) -> None:
        super().rewrite(site, replace(evidence, constant=site.module(site.nodes[0]).bias.detach()))


def siblings(pick: Pick) -> nn.Module:
    """Two layers side by side, concatenated or one by one."""
    return Siblings(pick([nn.ReLU, nn.SiLU])(), pick([False, True]))


class Siblings(nn.Module):
    """Activations of two layers, side by side or one by one."""

    def __init__(self, activation: nn.Module, apart: bool) -> None:
        super().__init__()
        self.a, self.b, self.activation, self.apart = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3), activation, apart

    def forward(self, x: Tensor) -> Any:
        """Concatenated, or both."""
        p, q = self.activation(self.a(x)), self.activation(self.b(x))
        return (p, q.sum(1)) if self.apart else torch.cat([p, q], 1)


class SlicesTurned(MergeSiblings):
    """Gives each the channels of the other."""

    name = "slices_turned"

    def check(self, site: Site) -> Any:
        found = super().check(site)
        if isinstance(found, Refusal):
            return found
        return replace(found, weight=found.weight.roll(len(found.weight) // 2, 0))


def shortcuts(pick: Pick) -> nn.Module:
    """A shortcut around two layers, with the activation between them or with none."""
    make = pick([nn.ReLU, lambda: nn.LeakyReLU(0.25)])
    return Around(nn.Conv2d(4, 6, 3, padding=1), make(), nn.Conv2d(6, 4, 1), pick([nn.Identity, make])())


class OneCopy(CarryShortcut):
    """Carries one copy, whatever the activation leaves of it."""

    name = "one_copy"

    def check(self, site: Site) -> Any:
        found = super().check(site)
        if isinstance(found, Refusal):
            return found
        layers = [site.module(n) for n in found.parts.layers]
        return replace(found, layers=carry_shortcut([m.weight for m in layers], [m.bias for m in layers]), slopes={})


class BesideCentre(CarryShortcut):
    """Takes the tap beside the centre."""

    name = "beside_centre"

    def rewrite(self, site: Site, evidence: Any) -> None:
        first = evidence.layers[0]
        weight = first.weight.clone()
        weight[first.copies.flatten()] = weight[first.copies.flatten()].roll(1, -1)
        super().rewrite(site, replace(evidence, layers=[replace(first, weight=weight), *evidence.layers[1:]]))


def to_relu(graph: fx.GraphModule) -> fx.GraphModule:
    """A leaky ReLU of a small slope is nearly a ReLU."""
    for name, part in list(graph.named_modules()):
        if isinstance(part, nn.LeakyReLU):
            graph.set_submodule(name, nn.ReLU())
    return graph


def leaky(pick: Pick) -> nn.Module:
    """A slope that is nearly none."""
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.LeakyReLU(pick([1e-4, 1e-2])))


@dataclass
class Planted:
    """A wrong rule.

    Args:
        name: what is wrong.
        rule: makes it.
        examples: networks in which it fires.
        near_misses: networks in which it must not.
        told: what the error says.
    """

    name: str
    rule: Callable[[], Any]
    examples: Callable[[Pick], Any]
    told: str
    near_misses: Callable[[Pick], Any] | None = None


def lifted(says: Callable[[Any], Any], target: type) -> Callable[[], Lift]:
    """A rule that is registered when it is asked for."""
    import reptool

    return lambda: reptool.lifts(target, name="planted")(says)


WRONG = "does not say what|other values|another shape|off by|largest error"
PLANTED = [
    *(Planted(name, lifted(says, Own), owns, WRONG) for name, says in LIFTED.items()),
    Planted("in-place module", lifted(lambda m: Conv(m.weight, groups=3), Rude), lambda pick: Rude(pick([False, True])),
            "writes into its input|view of its input"),
    Planted("aliasing", lifted(lambda m: Conv(m.weight, groups=3), Handed), lambda pick: Handed(), "view of its input"),
    Planted("linear along another axis", lifted(lambda m: Linear(m.weight), Last), lambda pick: Last(), WRONG),
    Planted("negative scale through max pooling", AnySign, scaled, "where .* computes something else"),
    Planted("wrong activation", AnyActivation, scaled, "where .* computes something else"),
    Planted("forgotten bias of a layer", NoBias, scaled, "computes something else"),
    Planted("dropped guard of the rank", NoRank, scaled, "without a batch"),
    Planted("one scale for all", FirstOfAll, scaled, "computes something else"),
    Planted("scale along another axis", AnyAxis, scaled, "computes something else|varies", along_width),
    Planted("in-place weight", InPlace, scaled, "wrote into 'layer."),
    Planted("rounded scale", Narrow, scaled, "computes something else"),
    Planted("state of a match", Remembers, scaled, "keeps what it found"),
    Planted("never fires", Sleeps, scaled, "did not fire"),
    Planted("layer called twice", Shared, lambda pick: Twice(), "computes something else|wrote into"),
    Planted("rows cut off", OnePool, pools, "computes something else"),
    Planted("order of a concatenation", OneRelu, lambda pick: Branches(), "computes something else"),
    Planted("forgotten constant", NoConstant, pruned, "computes something else"),
    Planted("zeros beyond the border", NoBorder, pruned, "where .*padding.* computes something else"),
    Planted("constant in front of the activation", BeforeActivation, pruned, "computes something else"),
    Planted("one copy through any activation", lambda: OneCopy(True), shortcuts, "computes something else"),
    Planted("slices of other siblings", SlicesTurned, siblings, "computes something else"),
    Planted("tap beside the centre", lambda: BesideCentre(True), shortcuts, "computes something else"),
    Planted("nearly the same", lambda: to_relu, leaky, "computes something else"),
]  # fmt: skip
