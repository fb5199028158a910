"""Networks for rules that rewrite: two layers with something between them, written once for every test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import reptool
from reptool.testing import randomize


class Scaled(nn.Module):
    """A layer, something between, a constant factor."""

    def __init__(self, layer: nn.Module, between: nn.Module, factor: Tensor | float) -> None:
        super().__init__()
        self.layer, self.between = layer, between
        self.factor: Any = nn.Parameter(factor) if isinstance(factor, Tensor) else factor

    def forward(self, x: Tensor) -> Tensor:
        """All in order."""
        return self.between(self.layer(x)) * self.factor  # type: ignore[no-any-return]


class Around(nn.Module):
    """Layers in a row, and a shortcut around them; the last part is what stands on the shortcut."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = nn.Sequential(*parts[:-1]), parts[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Their sum."""
        return self.main(x) + self.shortcut(x)  # type: ignore[no-any-return]


def random(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """With statistics that are not those of a fresh model."""
    return randomize(build(), seed).eval()


def deployed_by(model: nn.Module, rule: Any, x: Any = None, **options: Any) -> Any:
    """The flattened model with one rule of the caller's own."""
    return reptool.deploy(model, x, rules=(*reptool.RULES, rule), flatten=True, **options)


def rewritten(model: nn.Module) -> int:
    """At how many sites rules have acted."""
    return sum(len(r.places) for r in reptool.report(model).rewritten)


def images(channels: int = 3) -> Tensor:
    """Two images."""
    return torch.randn(2, channels, 12, 9, generator=torch.Generator().manual_seed(3))
