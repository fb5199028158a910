"""State of folded layers: it goes on loading into copies, and the original's is refused, whole or in parts."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import AbsorbedStateError, SpecializedError
from reptool.testing import perturb
from tests.traps import assert_same, ready


class Net(nn.Module):
    """A layer that grows a bias, one that has it, one that no norm is folded into, a functional one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.wide, self.narrow = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.part = Functional()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.part((self.wide(x) + self.narrow(x)).relu()))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gamma = nn.Parameter(torch.rand(4, 4, 1, 1)), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (nn.functional.conv2d(x, self.weight) * self.gamma).relu()


X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> Any:
    return ready(Net())


@pytest.fixture
def deployed(model: Any) -> Any:
    return reptool.deploy(model)


def saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("how", [lambda s: s, copy.deepcopy, saved, dict], ids=["state", "copy", "file", "plain"])
@pytest.mark.parametrize("flatten", [False, True])
def test_the_state_of_a_deployed_model_loads_into_another(model: Any, how: Any, flatten: bool) -> None:
    deployed = reptool.deploy(model, flatten=flatten)
    other = reptool.deploy(ready(Net()), flatten=flatten)
    with torch.no_grad():
        for p in deployed.parameters():
            p.add_(1.0)
    other.load_state_dict(how(deployed.state_dict()))
    assert_same(deployed(X), other(X))


def test_parts_of_it_load_into_parts(deployed: Any) -> None:
    other = copy.deepcopy(deployed)
    for path in ("stem", "stem.0", "wide", "part", "head"):
        other.get_submodule(path).load_state_dict(deployed.get_submodule(path).state_dict())
    alone = nn.Sequential(other.stem)
    alone.load_state_dict(nn.Sequential(deployed.stem).state_dict())


@pytest.mark.parametrize("path", ["", "stem", "stem.0", "wide", "narrow", "part"])
def test_the_original_s_state_is_refused(model: Any, deployed: Any, path: str) -> None:
    with pytest.raises(AbsorbedStateError, match="load it into the original model and deploy"):
        deployed.get_submodule(path).load_state_dict(model.get_submodule(path).state_dict(), strict=False)


@pytest.mark.parametrize("key", ["stem.0.weight", "wide.weight", "stem.1.weight", "narrow.bias", "part.gamma"])
def test_single_entries_of_it_are_refused(model: Any, deployed: Any, key: str) -> None:
    before = copy.deepcopy(deployed)
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict({key: model.state_dict()[key]}, strict=False)
    assert_same(before(X), deployed(X))


def test_a_layer_that_is_what_it_was_loads_what_it_loaded(model: Any, deployed: Any) -> None:
    deployed.load_state_dict({k: v * 2 for k, v in model.state_dict().items() if k.startswith("head")}, strict=False)
    deployed.head.load_state_dict(model.head.state_dict())
    assert torch.equal(deployed.head.weight, model.head.weight)


def test_the_same_model_deployed_in_another_way_is_told_apart(model: Any, deployed: Any) -> None:
    less = reptool.deploy(model, exclude="narrow")
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict(less.state_dict(), strict=False)


class Kept(nn.Module):
    """Every name of its state is left, and means more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.register_buffer("scale", torch.rand(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.conv(x) * self.scale).relu() * self.scale


def test_a_plain_dict_that_may_be_of_the_original_is_refused() -> None:
    model = ready(Kept())
    deployed = reptool.deploy(model)
    for state in (dict(model.state_dict()), {"conv.weight": model.conv.weight}):
        with pytest.raises(AbsorbedStateError):
            deployed.load_state_dict(state, strict=False)
    with pytest.raises(AbsorbedStateError, match="plain dict does not say"):
        deployed.load_state_dict(dict(deployed.state_dict()))
    deployed.load_state_dict(deployed.state_dict())
    reptool.release(deployed).load_state_dict(dict(deployed.state_dict()))


COMPUTED = {
    "parametrization": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)),
    "hook": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_layer_that_computed_its_weight_says_what_it_holds(name: str) -> None:
    """The original computes ``weight`` anew at every call, whatever is written to it; and it had other tensors."""
    model, x = ready(nn.Sequential(COMPUTED[name](), nn.BatchNorm2d(4))), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    assert_same(model(x), deployed(x))
    with pytest.raises(AbsorbedStateError):
        deployed[0].load_state_dict({"bias": torch.zeros(4)}, strict=False)
    with pytest.raises(SpecializedError, match="'weight' of this"):
        deployed[0].weight = nn.Parameter(torch.zeros_like(deployed[0].weight))
    perturb(model, deployed, x, tries=60, allow=("lenient",))
