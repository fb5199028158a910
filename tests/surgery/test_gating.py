"""Gates: what they check of the values that a layer is given, and of the modules between the parts of a region."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb, randomize
from tests.networks import random_network


def test_a_norm_that_moved_ahead_says_nothing_of_the_rank_behind_a_flatten() -> None:
    """Seed 165: part of a norm of images goes into a linear layer, behind which stands a norm of vectors."""
    model, inputs = random_network(165)
    deployed = reptool.deploy(model, inputs)
    torch.testing.assert_close(deployed(*inputs), model(*inputs), rtol=1e-3, atol=1e-4)


class Through(nn.Module):
    """A layer, something that only rearranges or averages, and a norm that goes into the layer."""

    def __init__(self, layer: nn.Module, between: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer, self.between, self.norm = layer, between, nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """One behind the other."""
        return self.norm(self.between(self.layer(x)))


class Ahead(nn.Module):
    """A norm that goes into a layer behind a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.norm, self.between, self.layer = (
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.AvgPool2d(2),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """One behind the other."""
        return self.layer(self.between(self.norm(self.act(x))))


class Shuffle(nn.Module):
    """A module of the user's between, with a setting."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle, self.act = nn.PixelShuffle(2), False

    def forward(self, x: Tensor) -> Tensor:
        """Rearranged, maybe behind an activation."""
        return self.shuffle(x.relu() if self.act else x)


BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "pixel shuffle": lambda: Through(nn.Conv2d(4, 16, 3, padding=1), nn.PixelShuffle(2), 4),
    "channel shuffle": lambda: Through(nn.Conv2d(4, 8, 1, groups=2), nn.ChannelShuffle(2), 8),
    "upsampling": lambda: Through(nn.Conv2d(4, 4, 3), nn.Upsample(scale_factor=2), 4),
    "a module of the user's": lambda: Through(nn.Conv2d(4, 16, 1), Shuffle(), 4),
    "pooling": Ahead,
}


def deployed_of(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """A model, deployed, with one region."""
    model = randomize(BETWEEN[name](), 1).double().eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    return model, deployed, x


@pytest.mark.parametrize("name", BETWEEN)
def test_a_hook_on_what_lies_between_raises(name: str) -> None:
    model, deployed, x = deployed_of(name)
    torch.testing.assert_close(deployed(x), model(x))
    deployed.between.register_forward_hook(lambda *_: None)
    with pytest.raises(SpecializedError):
        deployed(x)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("channel shuffle", "groups", 4),
        ("upsampling", "mode", "bilinear"),
        ("pooling", "padding", 1),
        ("pooling", "ceil_mode", True),
        ("a module of the user's", "act", True),
    ],
)
def test_another_setting_of_what_lies_between_raises(name: str, setting: str, value: object) -> None:
    model, deployed, x = deployed_of(name)
    torch.testing.assert_close(deployed(x), model(x))
    before = getattr(deployed.between, setting)
    setattr(deployed.between, setting, value)
    with pytest.raises(SpecializedError):
        deployed(x)
    setattr(deployed.between, setting, before)
    torch.testing.assert_close(deployed(x), model(x))


@pytest.mark.parametrize("name", BETWEEN)
def test_any_change_agrees_or_raises(name: str) -> None:
    model, deployed, x = deployed_of(name)
    perturb(model, deployed, x, tries=60, allow=("lenient",))


class NormAct(nn.BatchNorm2d):
    """A norm with what may follow it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The norm, and two modules that do nothing here."""
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(self.drop(y))


class ConvNormAct(nn.Module):
    """A convolution and a norm."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, kernel_size, padding=kernel_size // 2, bias=False), NormAct(4)

    def forward(self, x: Tensor) -> Tensor:
        """One branch."""
        return self.bn(self.conv(x))


class Branches(nn.Module):
    """Two branches of such."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = ConvNormAct(3), ConvNormAct(1)

    def forward(self, x: Tensor) -> Tensor:
        """Added."""
        return self.small(x) + self.large(x)


@pytest.mark.parametrize("shown", [True, False])
def test_what_lies_in_an_absorbed_branch_is_not_looked_for(shown: bool) -> None:
    model, x = randomize(nn.Sequential(Branches(), nn.ReLU(), Branches()).eval(), 1), torch.randn(2, 4, 9, 8)
    deployed = reptool.deploy(model, x if shown else None)
    assert reptool.report(deployed).layers == (4, 2)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_container_of_a_graph_is_not_watched() -> None:
    """Seed 10: a tensor folded out of a container closed the gate of another layer in it, once it was one graph."""
    model, inputs = random_network(10)
    deployed = reptool.deploy(model, inputs, flatten=True)
    torch.testing.assert_close(deployed(inputs), model(inputs), rtol=1e-3, atol=1e-4)
