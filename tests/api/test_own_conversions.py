"""The model's own conversions become no-ops on a deployed model, if they are conversions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb, randomize
from tests.traps import ConvBN, image


class Fused(nn.Module):
    """With a conversion of its own, which is right."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """A layer, a norm, an activation."""
        return self.act(self.norm(self.conv(x)))

    def fuse(self) -> None:
        """The norm into the layer."""
        print("fusing")
        norm, old = self.norm, self.conv
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.conv = nn.Conv2d(3, 3, 3, padding=1).to(old.weight)
        self.conv.weight.data = old.weight.data * scale.reshape(-1, 1, 1, 1)
        self.conv.bias.data = norm.bias.data - norm.running_mean * scale
        self.norm = nn.Identity()


class Forgets(Fused):
    """The shift is forgotten."""

    def fuse(self) -> None:
        super().fuse()
        nn.init.zeros_(self.conv.bias)


class Switches(nn.Module):
    """The name of a conversion, and no conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.deploy = ConvBN(), ConvBN(), False

    def forward(self, x: Tensor) -> Tensor:
        """Both, or one."""
        return self.a(x) if self.deploy else self.a(x) + self.b(x)

    def switch_to_deploy(self) -> None:
        """One branch from now on."""
        self.deploy = True


class Asks(Fused):
    """A method of such a name with an argument."""

    def fuse(self, other: Fused) -> Tensor:  # type: ignore[override]
        return other.conv.weight + self.conv.weight


def deployed_of(model: nn.Module) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, deployed."""
    model, x = randomize(model, 1).double().eval(), image()
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    return model, deployed, x


def test_a_conversion_has_nothing_left_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    model, deployed, x = deployed_of(Fused())
    deployed.fuse()
    torch.testing.assert_close(deployed(x), model(x))
    assert "fusing" not in capsys.readouterr().out
    assert type(model.norm) is nn.BatchNorm2d


@pytest.mark.parametrize(("kind", "name"), [(Forgets, "fuse"), (Switches, "switch_to_deploy"), (Asks, "fuse")])
def test_a_method_that_changes_what_is_computed_raises(kind: type[nn.Module], name: str) -> None:
    model, deployed, x = deployed_of(kind())
    with pytest.raises(SpecializedError, match=rf"{name}\(\) changes what the original computes"):
        getattr(deployed, name)()
    torch.testing.assert_close(deployed(x), model(x))


def test_inside_of_a_model_each_is_judged() -> None:
    _, deployed, _ = deployed_of(nn.Sequential(Switches(), nn.ReLU()))
    with pytest.raises(SpecializedError):
        deployed[0].switch_to_deploy()


def test_a_loaded_model_says_the_same(tmp_path: Path) -> None:
    _, deployed, x = deployed_of(Switches())
    reptool.save(deployed, tmp_path / "m.safetensors")
    loaded = reptool.load(tmp_path / "m.safetensors", into=lambda: Switches().double().eval())
    torch.testing.assert_close(loaded(x), deployed(x))
    with pytest.raises(SpecializedError):
        loaded.switch_to_deploy()


@pytest.mark.parametrize("kind", [Fused, Switches])
def test_any_change_agrees_or_raises(kind: type[nn.Module]) -> None:
    model, deployed, x = deployed_of(kind())
    perturb(model, deployed, x, tries=60, allow=("lenient",))
