"""Methods without arguments that compute something from weights."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import reptool
from reptool.errors import SpecializedError
from tests.traps import ConvBN, ready


class Penalized(ConvBN):
    def penalty(self) -> Any:
        return self.conv.weight.square().sum() + self.bn.weight.abs().sum()

    def last_weight(self) -> Any:
        return self.conv.weight

    @property
    def kernel(self) -> torch.Tensor:
        """The weight of the first layer."""
        return self.conv.weight

    @property
    def kind(self) -> torch.dtype:
        return self.conv.weight.dtype

    def width(self) -> Any:
        return self.conv.weight.shape[0] * 2


def test_a_penalty_on_weights_that_are_others_now_raises() -> None:
    model = ready(Penalized())
    deployed: Any = reptool.deploy(model)
    with pytest.raises(SpecializedError, match="penalty"):
        deployed.penalty()
    assert model.penalty() > 0


def test_a_weight_that_is_another_now_is_not_handed_out_but_its_shape_is() -> None:
    deployed: Any = reptool.deploy(ready(Penalized()))
    for made in (deployed, copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert made.width() == 8
        with pytest.raises(SpecializedError, match="last_weight"):
            made.last_weight()
        with pytest.raises(SpecializedError, match="kernel"):
            _ = made.kernel
        assert made.kind == torch.float64


class Handing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))

    @property
    def kernel(self) -> torch.Tensor:
        return self.conv.weight


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_property_that_raises_does_not_keep_a_model_from_being_compiled() -> None:
    deployed = reptool.deploy(ready(Handing()))
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    assert torch.equal(torch.jit.script(deployed)(x), deployed(x))


class Regular(ConvBN):
    """Code that finds its weights by walking, and code that writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.average = copy.deepcopy(self.conv)

    def orthogonal(self) -> Any:
        total = 0
        for _, module in self.named_modules():
            if isinstance(module, torch.nn.Conv2d):
                total = total + module.weight.flatten(1).square().sum()
        return total

    def update(self) -> None:
        with torch.no_grad():
            for p, q in zip(self.conv.parameters(), self.average.parameters(), strict=True):
                p.lerp_(q, 0.5)


@pytest.mark.parametrize("name", ["orthogonal", "update"])
def test_weights_found_by_walking_and_weights_written(name: str) -> None:
    deployed = reptool.deploy(ready(Regular()))
    assert len(reptool.report(deployed).regions) == 1
    with pytest.raises(SpecializedError, match=name):
        getattr(deployed, name)()


class Kernel(torch.nn.Module):
    """A weight under a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.randn(4, 3, 3, 3))
        self.bn = torch.nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(torch.nn.functional.conv2d(x, self.kernel))

    def energy(self) -> torch.Tensor:
        return self.kernel.square().sum()


def test_a_weight_is_known_by_its_own_name() -> None:
    deployed: Any = reptool.deploy(ready(Kernel()))
    assert len(reptool.report(deployed).regions) == 1
    with pytest.raises(SpecializedError, match="energy"):
        deployed.energy()
