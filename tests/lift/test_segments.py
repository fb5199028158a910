"""Segments: blocks, groups and transforms of a value that are a map of it together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from tests.traps import assert_same

Part = Callable[[Any, Tensor], Tensor]


class Beside(nn.Module):
    """A layer, and an operation on parts of its input beside it."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.base, self.part = nn.Linear(12, 12), part
        self.blocks, self.rows = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(4, 12))
        self.kernel = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.part(self, x)


def blocks(m: Any, x: Tensor) -> Tensor:
    """A block-diagonal matrix."""
    return torch.einsum("...rk,rkc->...rc", x.reshape(*x.shape[:-1], 3, 4), m.blocks).reshape(x.shape)


def groups(m: Any, x: Tensor) -> Tensor:
    """Sums over groups of channels, and a product."""
    return x.reshape(*x.shape[:-1], x.size(-1) // 4, 4).sum(dim=-2) @ m.rows


def shuffled(m: Any, x: Tensor) -> Tensor:
    """Blocks, a transposition of what they give, and blocks again."""
    y = torch.einsum("...rk,rkc->...rc", x.unflatten(-1, (3, 4)), m.blocks).transpose(-1, -2)
    return y.reshape(x.shape)


class Convolved(torch.autograd.Function):
    """A circular convolution along the channels, by Fourier transforms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        """In the domain of frequencies."""
        return torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(kernel)).real

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Not needed here."""
        return grads[0], None


def circular(m: Any, x: Tensor) -> Tensor:
    """A function that is not followed."""
    return Convolved.apply(x, m.kernel) / x.size(-1)


def squared(m: Any, x: Tensor) -> Tensor:
    """Blocks of a value times the value."""
    y = x.reshape(*x.shape[:-1], 3, 4)
    return (torch.einsum("...rk,rkc->...rc", y, m.blocks) * y).reshape(x.shape)


def normalized(m: Any, x: Tensor) -> Tensor:
    """Blocks of a value by the sizes of its other axes."""
    y = torch.einsum("...rk,rkc->...rc", x.reshape(*x.shape[:-1], 3, 4), m.blocks).reshape(x.shape)
    return y.cumsum(0)


def deployed(part: Part, *size: int) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Sequential(Beside(part), nn.ReLU()).double().eval(), torch.randn(*size, 12, dtype=torch.float64)
    return model, reptool.deploy(model, x), x


@pytest.mark.parametrize("size", [(5,), (2, 7)])
@pytest.mark.parametrize("part", [blocks, groups, shuffled, circular])
def test_parts_that_are_a_map_together_go_into_the_layer(part: Part, size: tuple[int, ...]) -> None:
    model, made, x = deployed(part, *size)
    assert reptool.report(made).layers[1] == 1, reptool.report(made).refusals
    assert_same(model(x), made(x))
    other = torch.randn(*[n + 1 for n in size], 12, dtype=torch.float64)
    assert_same(model(other), made(other))
    try:
        assert_same(model(x[None]), made(x[None]))
    except SpecializedError:
        return


@pytest.mark.parametrize("part", [squared, normalized])
def test_products_of_values_and_sums_over_the_batch_are_no_map(part: Part) -> None:
    model, made, x = deployed(part, 5)
    assert_same(model(x), made(x))
    assert "0.blocks" in dict(made.named_parameters())


class Read(Beside):
    """What lies inside is read by somebody else as well."""

    def forward(self, x: Tensor) -> Any:
        y = x.reshape(*x.shape[:-1], 3, 4)
        z = torch.einsum("...rk,rkc->...rc", y, self.blocks)
        return self.base(x) + z.reshape(x.shape), F.relu(z)


def test_what_somebody_else_reads_stays() -> None:
    model, x = Read(blocks).double().eval(), torch.randn(5, 12, dtype=torch.float64)
    made = reptool.deploy(model, x)
    assert_same(model(x), made(x))
