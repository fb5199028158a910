"""A module hands on to a layer where all it does is that layer's work on its one argument."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock


class Scaled(nn.Module):
    """A layer and a factor: one map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * 2


class Rectified(Scaled):
    """More than a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


class Mixed(Scaled):
    """A layer of something else than the argument."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sin())


class Two(Scaled):
    """Takes a second argument."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x) * 2


class Cast(Scaled):
    """Asks its argument for its dtype, and gives it back in that."""

    def forward(self, x: Tensor) -> Tensor:
        before = x.dtype
        return (self.layer(x) * 2).to(before)


class Around(nn.Module):
    """Runs a module between operations that no layer takes up."""

    def __init__(self, inner: nn.Module, given: int = 1) -> None:
        super().__init__()
        self.inner, self.given = inner, given

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x)
        return torch.tanh(self.inner(*[x] * self.given))


def unwrapped(model: nn.Module, x: Tensor) -> dict[str, str]:
    """Where a layer took the place of its wrapper; the model still gives what it gave."""
    deployed = reptool.deploy(model.eval(), x, unwrap=True)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    return reptool.report(deployed).unwrapped


@pytest.mark.parametrize("inner", [Scaled(), Cast(), nn.Sequential(nn.Linear(4, 4)), nn.Sequential(Scaled())])
def test_one_layer_takes_the_place(inner: nn.Module) -> None:
    assert unwrapped(Around(inner), torch.randn(2, 4)) == {"inner": type(inner).__name__}


@pytest.mark.parametrize("inner", [Rectified(), Mixed(), nn.Sequential(nn.Linear(4, 4), nn.Tanh())])
def test_what_does_more_stays(inner: nn.Module) -> None:
    assert unwrapped(Around(inner), torch.randn(2, 4)) == {}


def test_a_second_argument_keeps_the_wrapper() -> None:
    assert unwrapped(Around(Two(), 2), torch.randn(2, 4)) == {}


def test_the_outermost_of_several_wrappers_goes() -> None:
    model = Around(nn.Sequential(nn.Sequential(DiverseBranchBlock(3, 3, activation=None))))
    assert unwrapped(model, torch.randn(2, 3, 8, 8)) == {"inner": "Sequential"}


def test_a_block_with_an_activation_keeps_it() -> None:
    assert unwrapped(Around(RepVGGBlock(3, 3)), torch.randn(2, 3, 8, 8)) == {"inner.branches": "Parallel"}


def test_a_model_that_is_one_layer_itself_stays_a_model() -> None:
    deployed = reptool.deploy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), unwrap=True)
    assert isinstance(deployed, nn.Sequential)


def test_a_view_behind_the_layer_keeps_the_wrapper() -> None:
    model = Around(nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.BatchNorm1d(4)))
    assert unwrapped(model, torch.randn(2, 3, 8, 8)) == {}
