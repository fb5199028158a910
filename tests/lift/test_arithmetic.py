"""Sums and means of stacked values, against the model itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Any]
BARE = pytest.mark.parametrize("bare", [False, True])


class Model(nn.Module):
    """Three branches and a norm."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.own = forward
        self.branches = nn.ModuleList(nn.Conv2d(4, 4, k, padding=k // 2) for k in (3, 1, 1))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        """By one of the forms below."""
        return self.own(self, x)


def parts(self: Any, x: Tensor) -> list[Tensor]:
    """What the branches give."""
    return [b(x) for b in self.branches]


def check(forward: Forward, bare: bool) -> list[str]:
    """Deploys a model and compares it at several sizes; the layers that are left."""
    model = randomize(Model(forward).eval()).double()
    deployed = reptool.deploy(model, *(() if bare else (torch.randn(2, 4, 6, 5, dtype=torch.float64),)))
    for size in ((6, 5), (1, 2), (4, 4), (9, 3)):
        x = torch.randn(4, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    return [type(m).__name__ for m in deployed.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]


SUMS: dict[str, Forward] = {
    "sum": lambda self, x: self.norm(torch.stack([*parts(self, x), x]).sum(0)),
    "mean": lambda self, x: self.norm(torch.stack(parts(self, x), dim=0).mean(dim=0)),
    "along another": lambda self, x: self.norm(torch.sum(torch.stack(tuple(parts(self, x)), 1), dim=(1,))),
    "at the end": lambda self, x: self.norm(torch.stack(parts(self, x), -1).mean([-1])),
    "twice": lambda self, x: self.norm((lambda p: torch.stack([p[0], *p]).sum(0))(parts(self, x))),
    "python": lambda self, x: self.norm(sum(parts(self, x))),
    "alpha": lambda self, x: self.norm((lambda p: torch.add(p[0], p[1] - p[2], alpha=0.3))(parts(self, x))),
}


@BARE
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_stacked_branches_is_one_convolution(name: str, bare: bool) -> None:
    assert check(SUMS[name], bare) == ["Conv2d"]


def written(self: Any, x: Tensor) -> Tensor:
    """A part is written after it was stacked."""
    first, second, third = (b(x) for b in self.branches)
    stacked = torch.stack([first, second, third])
    first.relu_()
    return stacked.sum(0) + first


def overwritten(self: Any, x: Tensor) -> Tensor:
    """The stack is written before it is summed."""
    stacked = torch.stack(parts(self, x))
    stacked[0] = 0
    return stacked.sum(0)


def scaled(self: Any, x: Tensor) -> Tensor:
    """The whole stack is written in place."""
    stacked = torch.stack(parts(self, x))
    stacked *= torch.arange(1.0, 4.0).to(x).view(3, 1, 1, 1, 1)
    return stacked.sum(0)


TRAPS: dict[str, Forward] = {
    "another axis": lambda self, x: torch.stack(parts(self, x)).sum(1),
    "from the other end": lambda self, x: torch.stack(parts(self, x), 0).sum(-1),
    "all axes": lambda self, x: torch.stack(parts(self, x)).sum(),
    "two axes": lambda self, x: torch.stack(parts(self, x)).sum((0, 1)),
    "kept": lambda self, x: torch.stack(parts(self, x)).sum(0, keepdim=True),
    "dtype": lambda self, x: torch.stack(parts(self, x)).sum(0, dtype=torch.float32),
    "also read": lambda self, x: (lambda s: (s.sum(0), torch.tanh(s)))(torch.stack(parts(self, x))),
    "part read": lambda self, x: (lambda p: (torch.stack(p).sum(0), torch.tanh(p[1])))(parts(self, x)),
    "largest": lambda self, x: torch.stack(parts(self, x)).max(0)[0],
    "written": written,
    "overwritten": overwritten,
    "scaled": scaled,
}


@BARE
@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_sum_of_the_parts_stays_right(name: str, bare: bool) -> None:
    assert len(check(TRAPS[name], bare)) >= 2


class Gathered(nn.Module):
    """A sum that begins with zeros like its first part."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layers, self.in_place = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3)), in_place

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        first = self.layers[0](x)
        total = torch.zeros_like(first)
        for layer in self.layers[1:]:
            if self.in_place:
                total += layer(x)
            else:
                total = total + layer(x)
        return first + total


@pytest.mark.parametrize("in_place", [False, True])
def test_zeros_like_a_value_are_the_value_times_zero(in_place: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Gathered(in_place), nn.ReLU()).eval(), torch.randn(2, 3, 5, 4)
    deployed = reptool.deploy(model, x)
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) == 1
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
