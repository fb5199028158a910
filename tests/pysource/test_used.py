"""What the code of a method gets hold of by itself: parts of containers, what is inside of them, all tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.pysource.used import lists_tensors, used
from reptool.testing import randomize
from tests.traps import ConvBN, check, codes, norms, ready


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3))
        self.heads = nn.ModuleDict({"a": ConvBN(), "b": ConvBN()})

    def wholes(self) -> set[nn.Module]:
        return {*self.layers, *self.heads.values()}


class Calls(Net):
    """Every method here uses layers or heads, and nothing inside of them."""

    def loop(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def counted(self, x: Any, wanted: int) -> Any:
        if wanted < 0:
            wanted += len(self.layers)
        for i, layer in enumerate(self.layers):
            if i == wanted:
                x = layer(x)
        return x

    def paired(self, xs: Any) -> Any:
        return [layer(x) for i, (x, layer) in enumerate(zip(xs, reversed(self.layers), strict=True)) if i]

    def by_name(self, x: Any) -> Any:
        return {name: head(x) for name, head in self.heads.items()} | {"": [v(x) for v in self.heads.values()]}

    def by_index(self, x: Any, i: int) -> Any:
        return self.layers[i](x) + sum(self.layers[j](x) for j in range(len(self.layers)))

    def kept(self, x: Any) -> Any:
        for layer in self.layers:
            last = layer
        return last(x)

    def sliced(self, x: Any) -> Any:
        for layer in self.layers[1:]:
            x = layer(x)
        return x

    def one_of(self, x: Any) -> Any:
        first, second = self.heads["a"], self.heads.b
        return (first if x is None else second)(x) + next(iter(self.layers))(x)

    def handed_on(self, x: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(self.layers[0], x)  # type: ignore[attr-defined]


class Reaches(Net):
    """Every method here gets hold of something inside of a layer or a head."""

    def inside(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer[0](x)
        return x

    def attribute(self, x: Any) -> Any:
        return [head.conv.weight * x for head in self.heads.values()]

    def nested(self, x: Any) -> Any:
        for layer in self.layers:
            for part in layer:
                x = part(x)
        return x

    def element(self, x: Any) -> Any:
        return self.heads["a"].conv(x)

    def whole(self, x: Any) -> Any:
        layers = self.layers
        return layers[0][0](x)

    def starred(self, x: Any) -> Any:
        first, *_ = self.layers
        return first[0](x)

    def mapped(self, x: Any) -> Any:
        return [f(x) for f in (layer[0] for layer in self.layers)]

    def by_forward(self, x: Any) -> Any:
        return self.heads.a.conv.forward(x)

    def given(self, x: Any) -> Any:
        return self.heads.a.conv

    def helped(self, x: Any) -> Any:
        return self.inside(x)


def methods(owner: type) -> list[str]:
    return [n for n, f in vars(owner).items() if callable(f) and not n.startswith("__")]


@pytest.mark.parametrize("name", methods(Calls))
def test_parts_of_a_container_are_used_as_they_are(name: str) -> None:
    net = Calls()
    found = used(name, net)
    assert found
    assert found <= net.wholes()


@pytest.mark.parametrize("name", methods(Reaches))
def test_what_is_inside_of_a_part_is_used_by_itself(name: str) -> None:
    net = Reaches()
    assert used(name, net) - net.wholes()


def test_looking_at_modules_is_no_use_of_them() -> None:
    class Looks(Net):
        def looks(self, kind: type) -> Any:
            kinds = [isinstance(layer[0], kind) for layer in self.layers]
            return kinds, len(self.layers[0]), self.heads.a.conv.weight.shape, self.heads.b.conv.stride

    assert used("looks", Looks()) == set()


def test_methods_that_are_judged_elsewhere_are_not_followed() -> None:
    net = Reaches()
    assert used("helped", net)
    assert used("helped", net, {"inside"}) == set()


def test_code_without_a_text_may_use_everything() -> None:
    scope: dict[str, Any] = {}
    exec("def run(self, x):\n    return [layer(x) for layer in self.layers]", scope)
    net = type("Text", (Net,), {"run": scope["run"]})()
    assert used("run", net) == set(net.modules())
    assert lists_tensors("run", net)


class Heads(nn.Module):
    """One head for each feature map; how many maps there are is asked of the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        if float(maps[0].sum()) > 1e9:
            return maps
        return [layer(x) for x, layer in zip(maps, self.layers, strict=True)]


class HeadsInside(Heads):
    """The same with a look inside."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        if float(maps[0].sum()) > 1e9:
            return maps
        out = [layer(x) for x, layer in zip(maps, self.layers, strict=True)]
        return [*out, self.layers[0][0](maps[0])] if len(maps) == 3 else out


@pytest.mark.parametrize(("head", "left"), [(Heads, 0), (HeadsInside, 1)])
def test_heads_that_cannot_be_followed(head: type[nn.Module], left: int) -> None:
    model, maps = randomize(head()).eval(), [torch.randn(2, 3, 8 - i, 9 - i) for i in range(3)]
    deployed = reptool.deploy(model)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    assert norms == 3 * left
    for found, wanted in zip(deployed(maps), model(maps), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.twin = ConvBN(), ConvBN()

    def forward(self, x: Any) -> Any:
        return self.block(x).relu() * sum(p.square().sum() for p in self.parameters())


class ReadsState(Sums):
    def forward(self, x: Any) -> Any:
        return self.block(x) + self.state_dict()["block.bn.running_mean"].sum()


class Momentum(Sums):
    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            for p, q in zip(self.block.parameters(), self.twin.parameters(), strict=True):
                q.data = q.data * 0.5 + p.data * 0.5
        return self.block(x) + self.twin(x)


class AsksDevice(Sums):
    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Any) -> Any:
        return self.block(x.to(self.device, next(self.parameters()).dtype)) + self.twin(x)


class AsksAll(AsksDevice):
    """The first of what a comprehension finds, as transformers asks for a dtype."""

    @property
    def device(self) -> torch.device:
        return next(p.device for p in self.parameters() if p.is_floating_point())


class FirstSum(Sums):
    def forward(self, x: Any) -> Any:
        return self.block(x) + next(p.sum() for p in self.parameters()) + self.twin(x)


@pytest.mark.parametrize("model", [Sums, ReadsState, Momentum])
def test_weights_that_are_listed_stay(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 2
    assert codes(report) & {"shared", "untraceable"}


def test_asking_for_a_device_is_no_reading() -> None:
    for model in (AsksDevice, AsksAll):
        deployed, _ = check(ready(model()))
        assert norms(deployed) == 0
    assert not lists_tensors("forward", AsksDevice())
    assert lists_tensors("forward", Momentum())


def test_the_first_value_of_a_comprehension_is_a_reading() -> None:
    check(ready(FirstSum()))
    assert lists_tensors("forward", FirstSum())
