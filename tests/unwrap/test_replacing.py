"""A layer in the place of its wrapper computes the same, is saved and loaded, and raises where the wrapper is asked."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import AbsorbedStateError, InputError, SpecializedError
from reptool.testing import randomize


class Adapter(nn.Module):
    """A layer with a low-rank change beside it, which can be switched off."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer, self.active = base, ["one"]
        self.down, self.up = nn.Linear(base.in_features, rank), nn.Linear(rank, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        if x.dtype != result.dtype:
            return result
        for _ in self.active:
            result = result + self.up(self.down(x))
        return result


class Attention(nn.Module):
    """Two adapted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = Adapter(nn.Linear(8, 8)), Adapter(nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)


def network() -> nn.Module:
    """Blocks of which some become a layer."""
    plain = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    return nn.Sequential(RepVGGBlock(3, 8), DiverseBranchBlock(8, 8, activation=None), nn.ReLU(), plain)


IMAGES = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, nn.Module]:
    """A network, and what it became."""
    model = randomize(network()).eval()
    return model, reptool.deploy(model, IMAGES, unwrap=True)


def test_the_architecture_that_people_know_comes_out(made: tuple[nn.Module, nn.Module]) -> None:
    model, deployed = made
    torch.testing.assert_close(deployed(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    kinds = [type(m).__name__ for m in deployed]
    assert kinds == ["RepVGGBlock", "Conv2d", "ReLU", "Conv2d"]
    names = {"0.branches.weight", "0.branches.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    assert set(deployed.state_dict()) == names
    report = reptool.report(deployed)
    assert report.unwrapped == {"1": "DiverseBranchBlock", "3": "Sequential", "0.branches": "Parallel"}
    assert {r.layer for r in report.regions} == {"0.branches", "1", "3"}
    assert "took the place of the DiverseBranchBlock" in str(report)


def test_names_of_an_adapted_model_are_those_of_its_base() -> None:
    base, x = nn.Linear(8, 8), torch.randn(2, 5, 8)
    model = Attention().eval()
    deployed = reptool.deploy(model, x, unwrap=True)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    assert set(deployed.state_dict()) == {f"{n}.{t}" for n in ("q", "k") for t in base.state_dict()}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(made: tuple[nn.Module, nn.Module], copied: Callable[[nn.Module], nn.Module]) -> None:
    assert torch.equal(copied(made[1])(IMAGES), made[1](IMAGES))


def test_it_is_saved_and_loaded(made: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    reptool.save(made[1], tmp_path / "m.safetensors")
    loaded = reptool.load(tmp_path / "m.safetensors", into=network)
    assert torch.equal(loaded(IMAGES), made[1](IMAGES))
    assert [type(m).__name__ for m in loaded] == ["RepVGGBlock", "Conv2d", "ReLU", "Conv2d"]
    torch.save(made[0].state_dict(), tmp_path / "w.pth")
    again = reptool.load(tmp_path / "m.safetensors", into=network, weights=tmp_path / "w.pth")
    torch.testing.assert_close(again(IMAGES), made[1](IMAGES), rtol=1e-4, atol=1e-4)


def test_released_it_is_plain_torch(made: tuple[nn.Module, nn.Module]) -> None:
    released = reptool.release(copy.deepcopy(made[1]))
    assert type(released[1]) is nn.Conv2d  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m[1], "branches", None),
        lambda m: m[1].branches,
        lambda m: m[3].append(nn.ReLU()),
        lambda m: m[3][0],
        lambda m: m[3].add_module("2", nn.ReLU()),
        lambda m: setattr(m[3], "2", nn.ReLU()),
        lambda m: setattr(m[3], "padding", 3),
        lambda m: m[1](IMAGES[0, :1].expand(8, -1, -1)),
    ],
)
def test_what_the_wrapper_had_raises(made: tuple[nn.Module, nn.Module], change: Callable[[Any], Any]) -> None:
    with pytest.raises((SpecializedError, TypeError)):
        change(copy.deepcopy(made[1]))


@pytest.mark.parametrize("part", ["", "0", "1", "3"])
def test_state_of_the_original_is_refused(made: tuple[nn.Module, nn.Module], part: str) -> None:
    model, deployed = made[0].get_submodule(part), copy.deepcopy(made[1]).get_submodule(part)
    with pytest.raises(AbsorbedStateError):
        deployed.load_state_dict(model.state_dict(), strict=False)


def test_a_dtype_that_decided_is_checked_by_the_layer() -> None:
    x = torch.randn(2, 5, 8)
    deployed = reptool.deploy(Attention().eval(), x, unwrap=True)
    assert set(reptool.report(deployed).unwrapped) == {"q", "k"}
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(SpecializedError, match="fused for inputs in"),
    ):
        deployed(x.bfloat16())


def test_a_graph_has_nothing_to_unwrap() -> None:
    with pytest.raises(InputError, match="flatten"):
        reptool.deploy(network().eval(), flatten=True, unwrap=True)
