"""Modules that nothing runs any more are absorbed: whatever is done to them raises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import QARepVGGBlock, RefConv
from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.runtime.absorbed import Absorbed
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
