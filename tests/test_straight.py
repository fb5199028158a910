"""Layers in a method that asks for sizes: fused where the text shows that they always run together."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool


def same_padding(x: Tensor, layer: nn.Conv2d) -> Tensor:
    size, stride, kernel = int(x.shape[-1]), layer.stride[0], layer.kernel_size[0]
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    return F.pad(x, (total // 2, total - total // 2) * 2)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)


class Padded(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = same_padding(x, self.conv)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x.relu()


class Nested(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 9:
            x = x[:, :, 1:]
        return self.norm(self.conv(x)).relu()


class NormByChance(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[2] > 9:
            y = self.norm(y)
        return y


class TwoWays(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 9:
            return self.norm(self.conv(x))
        return self.conv(x)


class BothRead(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return z if x.shape[2] > 9 else y


class ManyTimes(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for _ in range(x.shape[0]):
            y = self.norm(y)
        return y


class LayerByChance(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) if x.shape[2] > 9 else x[:, :1].repeat(1, 4, 1, 1)
        return self.norm(y)


class Elsewhere(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = self.norm(y)
        return y if x.shape[2] > 9 else y + self.conv.weight.sum()


class Gate(nn.Module):
    """Hands on large images as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[2] > 9 else x.relu()


class Gated(Layers):
    """The same value at the size that is seen, another one elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.other = Gate(), nn.Conv2d(3, 4, 1, 2)


class GateInside(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gate(self.conv(x)))


class GateInOneBranch(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.relu(F.pad(self.conv(self.gate(x)), (1, 0, 1, 0)) + self.other(x)))


class GateBehindASum(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.gate(F.pad(self.conv(x), (1, 0, 1, 0)) + self.other(x.sin())))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs the positions of calls")
@pytest.mark.parametrize("cls", [Padded, Nested])
def test_fused(cls: type[Layers]) -> None:
    model = cls().eval()
    assert isinstance(compared(model).norm, nn.Identity)


@pytest.mark.parametrize(
    "cls",
    [NormByChance, TwoWays, BothRead, ManyTimes, LayerByChance, Elsewhere, GateInside, GateInOneBranch, GateBehindASum],
)
def test_left(cls: type[Layers]) -> None:
    model = cls().eval()
    assert isinstance(compared(model).norm, nn.BatchNorm2d)


def compared(model: nn.Module) -> nn.Module:
    """The deployed model, which gives the same at every size and batch."""
    deployed = reptool.deploy(model, torch.randn(1, 3, 12, 12))
    for size in (4, 5, 8, 9, 10, 12, 13):
        for batch in (1, 2):
            x = torch.randn(batch, 3, size, size)
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    return deployed


class Cached(nn.Module):
    """A head that keeps the shape it saw, as detectors keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        if self.last != y.shape:
            self.anchors, self.last = (y[0, 0] * 0 + 1), y.shape
        return y * self.anchors

    def features(self, x: Tensor, deep: bool = False) -> Tensor:
        y = self.norm(self.conv(x))
        return y.relu() if deep else y


def test_attributes_written_while_tracing_are_gone_afterwards() -> None:
    compared(Cached().eval())


class Summed(nn.Module):
    """Branches of one value, of which one goes through a gate."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.gate, self.conv, self.other = Gate(), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.gate(x)) + (x if self.shortcut else self.other(x))


@pytest.mark.parametrize("shortcut", [False, True])
def test_branches_of_a_value_that_a_gate_hands_on_stay_apart(shortcut: bool) -> None:
    deployed = compared(Summed(shortcut).eval())
    assert "specialized" in {r.code.value for r in reptool.report(deployed).refusals}


class GatedBefore(nn.Module):
    """A block whose input comes through a gate: whatever that gives, both branches read it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.block = Gate(), nn.Sequential(Summed(False))
        self.block[0].gate = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.gate(x))  # type: ignore[no-any-return]


def test_a_gate_in_front_of_all_branches_is_no_obstacle() -> None:
    assert len(reptool.report(compared(GatedBefore().eval())).regions) == 1


def test_the_gate_is_still_there_for_the_original_code() -> None:
    model = Summed(False).eval()
    deployed = reptool.deploy(model, torch.randn(1, 3, 12, 12), keep_fallback=True)
    for size in (5, 9, 10, 12):
        x = torch.randn(2, 3, size, size)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)


class GateBetween(nn.Module):
    """The value in front of a gate is returned too; the method is written anew for the scale in it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.conv, self.other = Gate(), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sin(x)
        z = self.gate(y)
        return (self.conv(x) * 0.5 + 1.0).relu() + torch.cos(z) * self.other(y)


def test_a_gate_in_a_method_that_would_be_written_anew() -> None:
    compared(GateBetween().eval())
