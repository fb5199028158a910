"""Flags that a forward was not shown with, and layers inside a convolution that is replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import reptool


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    return made


class Stages(nn.Module):
    """Gives the values between its stages when asked; the last layer of one and the first of the next are linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3)
        self.second = nn.Conv2d(2, 3, 1)
        self.norm = norm(3)

    def forward(self, x: Tensor, hidden: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        y = self.first(x)
        z = self.norm(self.second(y))
        return (y, z) if hidden else z


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages()

    def forward(self, x: Tensor, hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return self.stages(x, hidden=hidden)


def test_values_between_layers_are_given_when_a_flag_asks_for_them() -> None:
    model = Net().eval()
    x = torch.randn(2, 3, 9, 7)
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    torch.testing.assert_close(deployed(x, hidden=True), model(x, hidden=True))
    assert isinstance(deployed.stages.norm, nn.Identity)  # what joins no values in between is fused all the same


class PaddedConv(nn.Conv2d):
    """A convolution that holds its padding as a layer."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4, 3, bias=False)
        self.pad = nn.ZeroPad2d((1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.pad(x), self.weight, self.bias, self.stride, self.padding)


def test_a_convolution_replaced_with_the_layers_inside_it() -> None:
    for pad in (nn.ZeroPad2d((1, 1, 1, 1)), nn.Identity()):
        conv = PaddedConv(3)
        conv.pad = pad
        model = nn.Sequential(conv, norm(4), nn.ReLU()).eval()
        for given in ((torch.randn(1, 3, 8, 8),), ()):
            deployed = reptool.deploy(model, *given)
            x = torch.randn(2, 3, 10, 12)
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
            assert not [m for m in deployed.modules() if isinstance(m, nn.BatchNorm2d)]
