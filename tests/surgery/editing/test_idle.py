"""Modules that nothing runs any more are absorbed: whatever is done to them raises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import QARepVGGBlock, RefConv
from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.runtime.absorbed import Absorbed
from reptool.testing import perturb
from tests.traps import assert_same, ready

X = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def deployed() -> RefConv:
    return reptool.deploy(ready(RefConv(4, 4, 3, padding=1)))


def test_what_computed_a_weight_is_absorbed(deployed: RefConv) -> None:
    assert type(deployed.convmap) is Absorbed
    with pytest.raises(SpecializedError, match="hook on it"):
        deployed.convmap.register_forward_hook(print)
    with pytest.raises(SpecializedError, match="'weight' is gone"):
        deployed.convmap.weight.data.zero_()
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict(RefConv(4, 4, 3, padding=1).state_dict())


def test_another_module_in_its_place_raises(deployed: RefConv) -> None:
    deployed.convmap = nn.Conv2d(4, 4, 3)
    with pytest.raises(SpecializedError, match=r"'convmap' of this RefConv was absorbed by deploy\(\)"):
        deployed(X)


def test_released_it_may_be_replaced() -> None:
    model = ready(RefConv(4, 4, 3, padding=1))
    released = reptool.release(reptool.deploy(model))
    released.convmap = nn.Conv2d(4, 4, 3)
    assert_same(model(X), released(X))


def test_an_identity_off_the_way_of_the_layer_is_absorbed() -> None:
    model = ready(QARepVGGBlock(4, 4, 3, identity=True))
    deployed = reptool.deploy(model)
    assert type(deployed.branches.identity) is Absorbed
    assert_same(model(X), deployed(X))


class Kept(nn.Module):
    """A map that computes a weight, and works on data as well."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.weight = nn.Linear(3, 3, bias=False), nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(nn.functional.conv2d(x, self.map(self.weight))[..., :3]) + self.map(x[:, :, :6, :3])


def test_what_still_runs_stays() -> None:
    model = ready(Kept())
    deployed = reptool.deploy(model)
    assert type(deployed.map) is nn.Linear
    assert_same(model(X), deployed(X))


class ReadsWeight(nn.Module):
    """A layer that is never called: its weight is read, by itself or in a computation."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        """Two branches."""
        weight = self.a.weight * self.a.weight.abs() if self.masked else self.a.weight
        return self.norm(nn.functional.conv2d(x, weight, self.a.bias, padding=1)) + self.b(x)


class PartOfIt(ReadsWeight):
    """Of that layer the bias is read for something else, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(nn.functional.conv2d(x, self.a.weight, None, padding=1)) + self.b(x)
        return torch.sigmoid(y) * self.a.bias.reshape(-1, 1, 1)


class Together(nn.Module):
    """The weights of two layers as one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Both, scaled."""
        weight, bias = torch.cat([self.q.weight, self.k.weight]), torch.cat([self.q.bias, self.k.bias])
        return nn.functional.linear(x, weight, bias) * 2


@pytest.mark.parametrize("masked", [False, True])
def test_a_layer_whose_weight_others_read_is_absorbed(masked: bool) -> None:
    model = ready(ReadsWeight(masked))
    deployed = reptool.deploy(model, X)
    assert type(deployed.a) is Absorbed
    assert_same(model(X), deployed(X))
    with pytest.raises(SpecializedError, match="'weight' is gone"):
        deployed.a.weight.data.zero_()
    deployed.a = nn.Conv2d(4, 4, 3).double()
    with pytest.raises(SpecializedError):
        deployed(X)


def test_a_layer_of_which_a_part_is_still_read_is_loud_about_the_rest() -> None:
    model = ready(PartOfIt(False))
    deployed = reptool.deploy(model, X)
    assert_same(model(X), deployed(X))
    assert "a.bias" in deployed.state_dict()
    assert "a.weight" not in deployed.state_dict()
    assert "Conv2d" in repr(deployed)
    with pytest.raises(SpecializedError, match="'weight' of this Conv2d was folded"):
        deployed.a.weight.data.zero_()
    deployed.a = nn.Conv2d(4, 4, 3).double()
    with pytest.raises(SpecializedError):
        deployed(X)


@pytest.mark.parametrize("model", [ReadsWeight(False), ReadsWeight(True), PartOfIt(False), Together()])
def test_any_change_agrees_or_raises(model: nn.Module) -> None:
    x = X if not isinstance(model, Together) else X[0]
    model = ready(model)
    deployed = reptool.deploy(model, x)
    assert reptool.report(deployed).regions
    perturb(model, deployed, x, tries=60, allow=("lenient",))
