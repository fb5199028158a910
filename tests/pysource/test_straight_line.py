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


class Heads(nn.Module):
    """One head for every level, called in a loop over them; what it computes last depends on a size it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.before = nn.ModuleList(Shift(4) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.after = nn.ModuleList(Factor(4) for _ in range(2))
        self.grid = [torch.zeros(1)] * 2

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return self.run([x.relu(), F.max_pool2d(x, 2)])

    def place(self, i: int, x: Tensor) -> Tensor:
        if self.grid[i].shape[2:] != x.shape[2:]:
            self.grid[i] = torch.arange(x.shape[3]).to(x.dtype).expand(1, 1, x.shape[2], -1)
        return x.sigmoid() + self.grid[i]

    def run(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(2):
            x[i] = self.heads[i](self.before[i](x[i]))
            x[i] = self.after[i](x[i])
            x[i] = self.place(i, x[i])
        return x


class Shift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.randn(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit + x


class Factor(Shift):
    def forward(self, x: Tensor) -> Tensor:
        return self.implicit * x


class HeadsKept(Heads):
    def run(self, x: list[Tensor]) -> list[Tensor]:
        raw = []
        for i in range(2):
            if self.grid[i].shape[2:] != x[i].shape[2:]:
                self.grid[i] = torch.zeros(1, 1, *x[i].shape[2:], dtype=x[i].dtype)
            x[i] = self.heads[i](x[i])
            raw.append(x[i])
            x[i] = self.after[i](x[i])
        return x + raw


class HeadsCrossed(Heads):
    def run(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(2):
            large = x[i].shape[2] > 9
            x[i] = self.heads[i](x[i])
            x[i] = self.after[i if large else 1 - i](x[i])
        return x


class HeadsByChance(Heads):
    def run(self, x: list[Tensor]) -> list[Tensor]:
        for i in range(2):
            if x[i].shape[2] > 9:
                i = 1 - i
            x[i] = self.heads[i](x[i])
            x[i] = self.after[i](x[i])
        return x


def check_heads(model: nn.Module) -> nn.Module:
    model = model.double().eval()
    deployed = reptool.deploy(model, torch.randn(1, 3, 16, 16, dtype=torch.float64))
    for size in (16, 16, 12, 24, 12):
        x = torch.randn(2, 3, size, size + 2, dtype=torch.float64)
        for got, wanted in zip(deployed(x), model(x), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    return deployed


def test_elements_called_one_after_the_other_in_a_loop_are_fused() -> None:
    torch.manual_seed(0)
    model = Heads()
    deployed = check_heads(model)
    assert all(isinstance(m, nn.Identity) for m in [*deployed.before, *deployed.after])  # type: ignore[misc]
    assert all(g.shape == (1,) for g in Heads().grid)


@pytest.mark.parametrize("cls", [HeadsKept, HeadsCrossed, HeadsByChance])
def test_elements_whose_values_are_seen_between_or_that_change_places_stay(cls: type[Heads]) -> None:
    torch.manual_seed(0)
    deployed = check_heads(cls())
    assert not any(isinstance(m, nn.Identity) for m in deployed.after)  # type: ignore[union-attr]


def test_what_a_forward_keeps_from_one_run_does_not_reach_another() -> None:
    model = Heads().eval()
    reptool.deploy(model, torch.randn(1, 3, 16, 16))
    assert all(type(g) is Tensor and g.shape == (1,) for g in model.grid)
