"""What code that could not be followed may do to the tensors of a layer that it hands on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import reptool
from tests.traps import codes


class Matrix(nn.Module):
    """A linear layer that keeps its weight transposed."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Plus(nn.Module):
    def __init__(self, change: Tensor) -> None:
        super().__init__()
        self.change = change

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.change


class Targeted(nn.Module):
    """Adds to a parameter of the layer inside while that runs, under a name that nobody can read off the text."""

    def __init__(self, base: Matrix, name: str = "weight") -> None:
        super().__init__()
        self.base, self.name = base, name
        self.change = nn.Parameter(torch.randn_like(base.weight))

    def inner(self) -> nn.Module:
        found: nn.Module = self
        while hasattr(found, "base"):
            found = found.base
        return found

    def forward(self, x: Tensor) -> Tensor:
        layer = self.inner()
        parametrize.register_parametrization(layer, self.name, Plus(self.change))
        try:
            return self.base(x)
        finally:
            parametrize.remove_parametrizations(layer, self.name, leave_parametrized=False)


class Branching(nn.Module):
    """Cannot be followed either, and only calls the layer."""

    def __init__(self, base: Matrix) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if x.sum() > 0 else self.base(-x)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("out", [6, 4])
def test_a_layer_that_is_handed_on_keeps_its_weight_as_it_lies(out: int, shown: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Targeted(Matrix(6, out)), nn.ReLU()).eval(), torch.randn(3, 6)
    wanted = model(x)
    deployed = reptool.deploy(model, x if shown else None)
    torch.testing.assert_close(deployed(x), wanted)
    assert "untraceable" in codes(reptool.report(deployed))


def test_a_layer_that_is_only_called_is_collapsed() -> None:
    model, x = nn.Sequential(Branching(Matrix(6, 4)), nn.ReLU()).eval(), torch.randn(3, 6)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    assert reptool.report(deployed).regions
