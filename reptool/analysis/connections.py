"""Which channels of the basis a refocused kernel attends to (figure 3).

The degree of connection of channel i of W_t with channel j of W_b is sum |W_r(i, j)| over the k x k filter
between them; channels of different groups of the map have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptool.errors import InputError

from .kernels import Refocused, refocused


@dataclass(frozen=True)
class Connections:
    """Degrees of connection.

    Args:
        degree: (n, n) in float64; rows are channels of W_t, columns of W_b.
    """

    degree: Tensor

    @property
    def own_share(self) -> float:
        """The share of the diagonal in all degrees: 1 where each channel attends to itself alone."""
        return float(self.degree.diagonal().sum() / self.degree.sum().clamp_min(1e-300))


def connection_degree(layer: nn.Module | Refocused, limit: int | None = 64) -> Connections:
    """The connection degree matrix of a RefConv.

    Args:
        layer: a RefConv, a convolution with `parametrizations.refconv`, or what `refocused` returns for one.
        limit: how many channels to show (the paper's number), None for all (N^2 numbers).

    Raises:
        InputError: not refocused, several refocused layers, or a map that is no convolution.

    Example:
        >>> from reptool.blocks import RefConv
        >>> connection_degree(RefConv(4, 4, 3, groups=4)).degree.shape
        torch.Size([4, 4])
    """
    if isinstance(layer, Refocused):
        found = layer
    else:
        layers = refocused(layer)
        if len(layers) > 1:
            raise InputError(f"the module has {len(layers)} refocused layers; pass one of them.")
        found = next(iter(layers.values()))
    if found.map_weight is None:
        raise InputError("the map of this layer is no convolution: it has no filter between two channels.")
    degrees = found.map_weight.double().abs().flatten(2).sum(2)
    total, width = degrees.shape
    count = total if limit is None else min(limit, total)
    result = degrees.new_zeros(count, count)
    first = torch.arange(count) // (total // found.map_groups) * width
    for j in range(width):
        column = first + j
        seen = column < count
        result[torch.arange(count)[seen], column[seen]] = degrees[:count, j][seen]
    return Connections(result)
