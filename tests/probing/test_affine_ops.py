"""Operations known to be affine: what passes without being named, and what never does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptool.probing.affine_ops import all_affine


class Case(nn.Module):
    """A module of one function with a few weights."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.scale = nn.Parameter(torch.randn(3, 3, 3, 3)), nn.Parameter(torch.randn(3, 1, 1))
        self.bn = nn.BatchNorm2d(3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.function(self, x)


def taps(self: Any, x: Tensor) -> Tensor:
    """A loop over taps that writes into parts of what it returns."""
    h, w = x.shape[-2:]
    wide, out = F.pad(x, (1, 1, 1, 1)), torch.zeros_like(x)
    for i in range(3):
        out[:, :2] += (self.scale * wide[..., i : i + h, 1 : 1 + w])[:, :2]
    return out


def fourier(self: Any, x: Tensor) -> Tensor:
    """By Fourier transforms."""
    size = (x.shape[-2] + 2, x.shape[-1] + 2)
    return torch.fft.irfft2(torch.fft.rfft2(x, size) * torch.fft.rfft2(self.weight[0], size), size)


def product_in_place(self: Any, x: Tensor) -> Tensor:
    """A weight that the input is written into."""
    weight = torch.zeros(3, 1, 1, dtype=x.dtype)
    weight += x.mean()
    return weight * x


AFFINE = [
    lambda self, x: F.conv2d(x, self.weight, padding=1, stride=2),
    lambda self, x: self.bn(x) + x * self.scale - 1.0,
    lambda self, x: (self.weight.flatten(1) @ F.unfold(x, 3, padding=1)).reshape(x.shape),
    lambda self, x: torch.einsum("nchw,oc->nohw", x, self.weight[:, :, 0, 0]),
    lambda self, x: torch.cat([x[:, 1:], x[:, :1]], 1).flip(1) / 3,
    taps,
    fourier,
]
OTHERS: list[tuple[str, Callable[[Any, Tensor], Any]]] = [
    ("relu", lambda self, x: x.relu()),
    ("clamp", lambda self, x: x.clamp(-1e30)),
    ("multiplies two", lambda self, x: x * x),
    ("multiplies two", lambda self, x: F.conv2d(x, x[:3, :, :3, :3])),
    ("multiplies two", product_in_place),
    ("reciprocal", lambda self, x: 1 / x),
    ("float64", lambda self, x: torch.where(x > 0, x, 2 * x)),
    ("float64", lambda self, x: x.float().double()),
    ("float64", lambda self, x: self.scale.flatten()[x.argmax(1)]),
    ("batch_norm", lambda self, x: F.batch_norm(x, None, None, training=True)),
    ("__bool__", lambda self, x: x * 2 if x.sum() > 0 else x),
    ("tolist", lambda self, x: x * x.flatten().tolist()[0]),
    ("numpy", lambda self, x: x * float(x.numpy().sum())),
    ("data_ptr", lambda self, x: x if x.data_ptr() == 1 else x * 2),
    ("sizes", lambda self, x: x * 2 if x.shape[-1] > 500 else x),
    ("sizes", lambda self, x: x * 2 if x.shape[-1] == 4097 else x * 1),
    ("sizes", lambda self, x: x * 2 if x.shape[-1] % 64 == 0 else x * 1),
    ("sizes", lambda self, x: x * 2 if x.shape[0] > 64 else x * 1),
    ("alone", lambda self, x: torch.stack([x[:, :, i] * 2 for i in range(x.shape[2])], 2)),
]


@pytest.mark.parametrize("function", AFFINE)
def test_known_operations_pass(function: Any) -> None:
    assert all_affine(Case(function), 3, 2) == ""


@pytest.mark.parametrize(("words", "function"), OTHERS)
def test_what_is_not_known_to_be_affine_is_said(words: str, function: Any) -> None:
    assert words in all_affine(Case(function), 3, 2)
