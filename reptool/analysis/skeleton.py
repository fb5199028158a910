"""Where in the window a kernel has its weight (figure 6).

The average magnitude matrix is the mean of |W| over all kernel channels, one number per position, divided by
its largest; strong centre rows and columns are the skeleton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptool.errors import InputError

from .kernels import Refocused, refocused


@dataclass(frozen=True)
class Skeletons:
    """Average magnitude matrices (*K) of a refocused kernel, each with maximum 1.

    Args:
        basis: of W_b.
        transformed: of W_t.
        increment: of W_t - W_b.
    """

    basis: Tensor
    transformed: Tensor
    increment: Tensor


def average_magnitude(kernel: Tensor, *, normalize: bool = True) -> Tensor:
    """The average magnitude matrix of a kernel.

    Args:
        kernel: (C_out, C_in/g, *K).
        normalize: whether to divide by the largest entry (unless all are zero).

    Returns:
        (*K) in float64.

    Raises:
        InputError: no spatial axes.

    Example:
        >>> average_magnitude(torch.tensor([[[1.0, -4.0, 1.0]], [[1.0, 0.0, -1.0]]]))
        tensor([0.5000, 1.0000, 0.5000], dtype=torch.float64)
    """
    if kernel.dim() < 3:
        raise InputError(f"a kernel of shape {tuple(kernel.shape)} was given, expected (C_out, C_in/g, *K).")
    mean = kernel.detach().double().abs().mean((0, 1))
    largest = mean.max()
    return mean / largest if normalize and bool(largest > 0) else mean


def skeletons(layer: nn.Module | Refocused) -> Skeletons:
    """The matrices of basis, transformed kernel and increment of one refocused layer.

    Args:
        layer: a RefConv, a convolution with `parametrizations.refconv`, or what `refocused` returns for one.

    Raises:
        InputError: not refocused, or several refocused layers.

    Example:
        >>> from reptool.blocks import RefConv
        >>> float(skeletons(RefConv(4, 4, 3, init="zeros")).increment.max())
        0.0
    """
    if not isinstance(layer, Refocused):
        layers = refocused(layer)
        if len(layers) > 1:
            raise InputError(f"the module has {len(layers)} refocused layers; pass one of them.")
        layer = next(iter(layers.values()))
    return Skeletons(*map(average_magnitude, (layer.basis, layer.transformed, layer.increment)))


def centre_share(matrix: Tensor) -> float:
    """The share of the centre row and column (of all central axes) in the sum of a magnitude matrix.

    Args:
        matrix: what `average_magnitude` returns.

    Example:
        >>> round(centre_share(torch.ones(3, 3)), 3)
        0.556
    """
    inside = torch.zeros(matrix.shape, dtype=torch.bool)
    for axis, size in enumerate(matrix.shape):
        inside.movedim(axis, 0)[size // 2] = True
    return float(matrix[inside].sum() / matrix.sum().clamp_min(1e-300))
