"""Small networks whose structure is easy, awkward or dangerous to exchange convolutions in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reptool.testing import randomize


def small() -> nn.Sequential:
    """Dense 3x3, depthwise 3x3, pointwise and a 5x5 with a bias, a norm behind each but the last."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8, eps=1e-3), nn.ReLU()),
        *(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Conv2d(12, 4, 5, padding=2),
    )


def ready(net: nn.Module) -> nn.Module:
    """Random statistics, eval mode."""
    return randomize(net).eval()


class Awkward(nn.Module):
    """Every convolution here must keep its norm, or may not be exchanged at all."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("noisy", "twice", "read", "weighed", "free"):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        """Call `twice` twice, read `read`'s output and `weighed`'s weight, and use `noisy` in an own way."""
        self_: Any = self
        x = self_.twice_bn(self_.twice(self_.twice(x)))
        y = self_.read(x)
        x = self_.read_bn(y) + y.relu()
        x = self_.weighed_bn(self_.weighed(x)) * self_.weighed.weight.mean()
        x = torch.relu(x)
        z: Tensor = self_.free_bn(self_.free(x))
        return z


class Noisy(nn.Module):
    """Adds noise between convolution and norm, but only while training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, add noise, normalize."""
        x = self.conv(x)
        if self.training:
            x = x + 1
        y: Tensor = self.bn(x)
        return y


class TwoWays(nn.Module):
    """Has a second forward that leaves the norm out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalize."""
        y: Tensor = self.bn(self.conv(x))
        return y

    def forward_plain(self, x: Tensor) -> Tensor:
        """Convolve only."""
        y: Tensor = self.conv(x)
        return y


class NormAct(nn.BatchNorm2d):
    """A batch normalization with an activation in it, as timm's."""

    def __init__(self, channels: int, act: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = act or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, drop, activate."""
        y: Tensor = self.act(self.drop(super().forward(x)))
        return y


class Sharpened(NormAct):
    """Looks like `NormAct` and computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize twice."""
        return 2 * super().forward(x)
