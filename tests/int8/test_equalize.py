"""Ranges of neighbours become alike on a flattened network; what is computed stays, to the last bit of every weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.int8 import equalize
from reptool.int8.ranges import lost, spread
from reptool.testing import randomize
from tests.rules.networks import images


def uneven(*layers: nn.Module) -> nn.Module:
    """Layers in a row, channels of which are far apart."""
    model = nn.Sequential(*layers).eval()
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            count = layer.weight.shape[0]
            factors = torch.exp2(torch.arange(count, dtype=torch.float32) * 8 / count - 4)
            layer.weight.data *= factors.reshape(-1, *[1] * (layer.weight.dim() - 1))
    return model


def made(model: nn.Module, x: Tensor | None = None) -> Any:
    return reptool.deploy(model, images() if x is None else x, rules=(*reptool.RULES, equalize), flatten=True)


def layers_of(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def test_ranges_become_alike_and_outputs_stay() -> None:
    model = uneven(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.LeakyReLU(0.1), nn.Conv2d(16, 8, 1))
    deployed = made(model)
    torch.testing.assert_close(deployed(images()), model(images()), rtol=1e-4, atol=1e-4)
    before, after = layers_of(model), layers_of(deployed)
    assert spread(before[0].weight) > 8
    assert spread(after[0].weight) < 0.5 * spread(before[0].weight)
    assert lost(after[0].weight) < 0.5 * lost(before[0].weight)
    found = torch.log2((after[0].weight / before[0].weight).flatten(1).nan_to_num(1.0)[:, 0])
    assert bool((found == found.round()).all()), "factors are powers of two: no weight was rounded"
    assert [r.rule for r in reptool.report(deployed).rewritten] == ["equalize"]


@pytest.mark.parametrize("between", [nn.SiLU(), nn.ReLU6(), nn.Softmax(1)])
def test_what_is_not_homogeneous_is_left(between: nn.Module) -> None:
    model = uneven(nn.Conv2d(3, 8, 3), between, nn.Conv2d(8, 8, 1))
    deployed = made(model)
    assert torch.equal(layers_of(deployed)[0].weight, layers_of(model)[0].weight)


def test_a_value_that_is_read_elsewhere_is_left() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = uneven(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.parts[1](self.parts[0](x))
            return self.parts[2](y).relu() + y

    model = Read().eval()
    deployed = made(model)
    assert torch.equal(layers_of(deployed)[0].weight, model.parts[0].weight)
    torch.testing.assert_close(deployed(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_a_layer_that_is_called_twice_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = uneven(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.parts[1](self.parts[0](x).relu()).relu()
            return x

    model = Twice().eval()
    deployed = made(model)
    torch.testing.assert_close(deployed(images()), model(images()), rtol=1e-4, atol=1e-4)
    assert {tuple(m.weight.flatten().tolist()) for m in layers_of(deployed)} == {
        tuple(m.weight.flatten().tolist()) for m in layers_of(model)
    }


def test_grouped_and_linear_layers() -> None:
    model = uneven(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=2))
    deployed = made(model)
    torch.testing.assert_close(deployed(images()), model(images()), rtol=1e-4, atol=1e-4)
    assert lost(layers_of(deployed)[1].weight) < lost(layers_of(model)[1].weight)
    rows = uneven(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 6)
    torch.testing.assert_close(made(rows, x)(x), rows(x), rtol=1e-4, atol=1e-4)


def test_collapsed_blocks_in_a_long_row() -> None:
    model = randomize(nn.Sequential(*(RepVGGBlock(3 if i == 0 else 8, 8) for i in range(12)))).eval()
    deployed = made(model)
    with torch.no_grad():
        found, wanted = deployed(images()), model(images())
    assert float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
