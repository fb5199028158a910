"""Methods that do nothing with the elements of a container but call them, and methods that do more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.pysource.elements import only_called
from reptool.testing import randomize


class Calls:
    """Every method here calls the elements of ``self.layers`` and nothing else."""

    layers: Any

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
        return {name: layer(x) for name, layer in self.layers.items()} | {"": [v(x) for v in self.layers.values()]}

    def by_index(self, x: Any, i: int) -> Any:
        return self.layers[i](x) + sum(self.layers[j](x) for j in range(len(self.layers)))


class Reaches:
    """Every method here reaches into an element, or hands one on."""

    layers: Any

    def inside(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer[0](x)
        return x

    def attribute(self, x: Any) -> Any:
        return [layer.weight * x for layer in self.layers]

    def kept(self, x: Any) -> Any:
        for layer in self.layers:
            last = layer
        return last(x)

    def nested(self, x: Any) -> Any:
        for layer in self.layers:
            for part in layer:
                x = part(x)
        return x

    def sliced(self, x: Any) -> Any:
        for layer in self.layers[1:]:
            x = layer(x)
        return x

    def element(self, x: Any) -> Any:
        return self.layers[0].conv(x)

    def handed_on(self, x: Any) -> Any:
        return helper(self, x)

    def whole(self, x: Any) -> Any:
        layers = self.layers
        return layers[0][0](x)

    def starred(self, x: Any) -> Any:
        first, *_ = self.layers
        return first[0](x)

    def mapped(self, x: Any) -> Any:
        return [f(x) for f in (layer[0] for layer in self.layers)]

    def wrong_place(self, xs: Any) -> Any:
        return [x(layer) for layer, x in zip(self.layers, xs, strict=True)]


def helper(module: Any, x: Any) -> Any:
    return module.layers[0][0](x)


def methods(owner: type) -> list[Any]:
    return [pytest.param(f, id=n) for n, f in vars(owner).items() if callable(f) and not n.startswith("__")]


@pytest.mark.parametrize("method", methods(Calls))
def test_elements_are_only_called(method: Callable[..., Any]) -> None:
    assert only_called(method, "layers")


@pytest.mark.parametrize("method", methods(Reaches))
def test_elements_are_reached_into(method: Callable[..., Any]) -> None:
    assert not only_called(method, "layers")


def test_code_without_a_text_is_not_trusted() -> None:
    scope: dict[str, Any] = {}
    exec("def run(self, x):\n    return [layer(x) for layer in self.layers]", scope)
    assert not only_called(scope["run"], "layers")


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
