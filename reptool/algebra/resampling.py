"""Resampling: maps along the positions, the same on every channel, whose weights add up to one.

::

    R(W x + b)  =  W R(x) + b

for a pointwise `W`: average and adaptive pooling that count no padding, nearest, linear and cubic resampling. What such
a map computes is the business of torch; it may stand on either side of a pointwise layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Resampling:
    """One such map.

    Args:
        name: of the class in `torch.nn`.
        settings: its arguments by name.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]

    def module(self) -> nn.Module:
        """A module that computes it.

        >>> Resampling("AvgPool2d", (("kernel_size", (2, 2)),)).module()
        AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=0)
        """
        made: nn.Module = getattr(nn, self.name)(**dict(self.settings))
        return made.eval()

    def out_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of what it gives for an image of this size; the same one where it refuses that.

        >>> Resampling("Upsample", (("scale_factor", 1.5),)).out_size((4, 6))
        (6, 9)
        """
        return _out_size(self, size)

    def __str__(self) -> str:
        """As it is printed."""
        return str(self.module())


@lru_cache(1024)
def _out_size(resampling: Resampling, size: tuple[int, ...]) -> tuple[int, ...]:
    try:
        with torch.no_grad():
            return tuple(resampling.module()(torch.empty(1, 1, *size, device="meta")).shape[2:])
    except RuntimeError:
        return size
