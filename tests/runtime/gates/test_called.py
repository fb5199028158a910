"""A method that leaves a part of its work to a fused layer is right in the calls that were traced, and in no others."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb, randomize
from tests.traps import ConvBN, image


class Scaled(nn.Module):
    """A helper method whose whole work goes into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ConvBN(), ConvBN()

    def scale(self, y: Tensor, by: float = 2.0) -> Tensor:
        """Nothing but arithmetic."""
        return y * by

    def forward(self, x: Tensor) -> Tensor:
        """Two branches."""
        return self.scale(self.a(x)) + self.b(x)

    def again(self, x: Tensor) -> Tensor:
        """The helper alone."""
        return self.scale(x)


class Deep(Scaled):
    """A helper in a helper."""

    def scale(self, y: Tensor, by: float = 2.0) -> Tensor:
        return self.twice(y) - by

    def twice(self, y: Tensor) -> Tensor:
        """By two."""
        return y * 2


def deployed_of(model: nn.Module) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, deployed."""
    model, x = randomize(model, 1).double().eval(), image()
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    return model, deployed, x


class Stays(Scaled):
    """A helper of which a part stays: it does not change when the calls that were traced leave the rest to a layer."""

    def scale(self, y: Tensor, by: float = 2.0) -> Tensor:
        return torch.tanh(y) * by

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.a(x) + self.b(x))


@pytest.mark.parametrize("kind", [Scaled, Deep, Stays])
def test_a_helper_by_itself_is_what_it_was(kind: type[Scaled]) -> None:
    model, deployed, x = deployed_of(kind())
    for call in (lambda m: m.scale(x), lambda m: m.again(x), *([lambda m: m.twice(x)] if kind is Deep else [])):
        torch.testing.assert_close(call(deployed), call(model))
        torch.testing.assert_close(deployed(x), model(x))


def test_copies_and_pickles_know_it_too() -> None:
    model, deployed, x = deployed_of(Scaled())
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        torch.testing.assert_close(other(x), model(x))
        torch.testing.assert_close(other.scale(x), model.scale(x))


def test_a_model_around_it_runs_it() -> None:
    model, deployed, x = deployed_of(Scaled())
    torch.testing.assert_close(nn.Sequential(deployed)(x), model(x))
    torch.testing.assert_close(torch.compile(deployed, backend="eager")(x), model(x))
    torch.testing.assert_close(torch.jit.trace(deployed, x)(x), model(x))
    exported = torch.export.export(deployed, (x,)).module()
    torch.testing.assert_close(exported(x), model(x))


def test_a_released_model_does_not_look() -> None:
    model, deployed, x = deployed_of(Scaled())
    released = reptool.release(deployed)
    torch.testing.assert_close(released(x), model(x))


@pytest.mark.parametrize("kind", [Scaled, Deep])
def test_any_change_agrees_or_raises(kind: type[Scaled]) -> None:
    model, deployed, x = deployed_of(kind())
    perturb(model, deployed, x, tries=60, allow=("lenient",))


class Partly(Scaled):
    """A helper of whose work a layer takes up a part."""

    def scale(self, y: Tensor, by: float = 2.0) -> Tensor:
        return torch.tanh(y * by)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.a(x))


def test_a_helper_that_does_less_is_no_method_of_its_own_any_more() -> None:
    model, deployed, x = deployed_of(Partly())
    torch.testing.assert_close(deployed(x), model(x))
    for other in (deployed, copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        for call in (lambda m: m.scale(x), lambda m: m.again(x)):
            with pytest.raises(SpecializedError, match="'scale' of this Partly"):
                call(other)
        torch.testing.assert_close(other(x), model(x))
