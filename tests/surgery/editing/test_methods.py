"""Calls that only gave back an argument are not made any more; a method is not written anew for some of its calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import randomize


class Plus(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plus = Plus()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x)
        return self.plus(torch.tanh(x), torch.relu(self.plus(self.a(z), self.b(z))))


class Shortcuts(Sums):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x)
        return self.plus(x, torch.relu(self.plus(self.a(z), z) + self.b(z)))


def test_a_call_that_gives_back_an_argument_is_omitted_and_its_module_goes_on_adding_elsewhere() -> None:
    for kind in (Sums, Shortcuts):
        model, x = randomize(kind().eval(), 1), torch.randn(2, 3, 8, 7)
        deployed = reptool.deploy(model, x)
        assert reptool.report(deployed).layers == (2, 1)
        assert type(deployed.plus) is Plus
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    """One method, of which one call folds and the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def both(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(x)
        return self.both(self.both(self.a(z), z), x) + self.b(x)


def test_a_method_is_not_written_anew_for_one_of_its_calls() -> None:
    model, x = randomize(Scaled().eval(), 1), torch.randn(2, 3, 8, 7)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    refusals = reptool.report(deployed).refusals
    assert any("runs differently in different places" in r.sentence for r in refusals), refusals


class Delta(nn.Module):
    """A layer, and what a method of the module computes beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(6, 5), nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))

    def delta(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.b @ self.a)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.delta(x)


def test_a_method_whose_output_is_folded_is_left_out() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Delta(), nn.ReLU()).eval(), torch.randn(3, 6)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
    assert set(deployed.state_dict()) == {"0.base.weight", "0.base.bias"}
    with pytest.raises((SpecializedError, AttributeError)):
        deployed[0].delta(x)
