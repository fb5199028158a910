"""The kernels of a model, and of those that are refocused the basis and the map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reptool.blocks import RefConv
from reptool.blocks.parametrizations import Refocus
from reptool.errors import InputError

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Refocused:
    """A refocused kernel.

    Args:
        basis: W_b (C_out, C_in/g, *K).
        transformed: W_t of the same shape.
        map_weight: W_r (N, N/G, *k) with N = C_out C_in/g, None if the map is no convolution.
        map_groups: G.
    """

    basis: Tensor
    transformed: Tensor
    map_weight: Tensor | None
    map_groups: int

    @property
    def increment(self) -> Tensor:
        """The difference W_t - W_b."""
        return self.transformed - self.basis


@torch.no_grad()
def kernels(model: nn.Module, *, pointwise: bool = False) -> dict[str, Tensor]:
    """The kernels that a model convolves with, by path; RefConv and parametrized layers give W_t.

    Args:
        model: any model.
        pointwise: whether to include 1x1 kernels.

    Raises:
        InputError: no such kernel.

    Example:
        >>> list(kernels(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), RefConv(4, 4, 3))))
        ['0', '2']
    """
    inner = {id(m.convmap) for m in model.modules() if isinstance(m, RefConv | Refocus)}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, RefConv):
            found[path] = module.transformed_weight().clone()
        elif isinstance(module, CONVS) and id(module) not in inner:
            found[path] = module.weight.detach().clone()
    chosen = {path: kernel for path, kernel in found.items() if pointwise or kernel[0, 0].numel() > 1}
    if not chosen:
        raise InputError(f"this {type(model).__name__} has no convolution with a kernel to look at.")
    return chosen


@torch.no_grad()
def refocused(model: nn.Module) -> dict[str, Refocused]:
    """The refocused kernels of a model, by path: RefConv layers and `parametrizations.refconv`.

    Args:
        model: any model, or a RefConv itself (its path is then "").

    Raises:
        InputError: nothing in it is refocused.

    Example:
        >>> refocused(nn.Sequential(RefConv(4, 4, 3)))["0"].map_groups
        16
    """
    found: dict[str, Refocused] = {}
    for path, module in model.named_modules():
        if isinstance(module, RefConv):
            found[path] = _read(module.weight, module.transformed_weight(), module.convmap)
        elif isinstance(module, CONVS) and parametrize.is_parametrized(module, "weight"):
            parts: Any = module.parametrizations
            first = parts.weight[0]
            if isinstance(first, Refocus):
                found[path] = _read(parts.weight.original, module.weight, first.convmap)
    if not found:
        raise InputError(f"nothing in this {type(model).__name__} is refocused; use RefConv or expand first.")
    return found


def _read(basis: Tensor, transformed: Tensor, convmap: Any) -> Refocused:
    is_map = isinstance(convmap, CONVS)
    return Refocused(
        basis.detach().clone(),
        transformed.detach().clone(),
        convmap.weight.detach().clone() if is_map else None,
        convmap.groups if is_map else 1,
    )
