"""Ranges of two layers made alike, channel by channel, through what is positively homogeneous.

For `f` with ``f(s x) = s f(x)`` for every ``s >= 0``, channel by channel, and any ``s > 0``::

    W_2 * f(W_1 * x + b_1)  =  (W_2 / s) * f((s W_1) * x + (s b_1))

and with ``r_1[c]`` the largest size of a weight that writes channel `c`, ``r_2[c]`` of one that reads it, both become
``sqrt(r_1 r_2)`` for ``s = sqrt(r_2 / r_1)``. Here `s` is the power of two next to that, so that no weight is rounded.

Domain: ``s > 0`` and finite; a channel that is written or read by zeros alone keeps ``s = 1``. Any groups.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors

LARGEST = 2.0**20


def read_by_channel(weight: Tensor, groups: int) -> Tensor:
    """The largest size of a weight that reads each channel.

    Args:
        weight: ``[E, D / groups, *K]``.
        groups: of the layer.

    Returns:
        ``[D]``.

    >>> read_by_channel(torch.tensor([[1.0, -3.0], [2.0, 0.0]]), 1).tolist()
    [2.0, 3.0]
    """
    parts = weight.detach().abs().flatten(2) if weight.dim() > 2 else weight.detach().abs().unsqueeze(-1)
    return parts.amax(-1).reshape(groups, -1, parts.shape[1]).amax(1).flatten()


def equalizing_scale(first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """The factor of each channel, a power of two.

    Args:
        first: ``[D, C, *K]``, the layer that writes the channels.
        second: ``[E, D / groups, *K]``, the layer that reads them.
        groups: of the second layer.

    Returns:
        ``[D]``, in float64.

    >>> equalizing_scale(torch.tensor([[8.0], [1.0], [0.0]]), torch.tensor([[0.5, 1.0, 1.0]])).tolist()
    [0.25, 1.0, 1.0]
    """
    written = first.detach().abs().flatten(1).amax(1).double()
    read = read_by_channel(second, groups).double()
    exponent = torch.round(torch.log2(read / written) / 2)
    scale = torch.exp2(exponent)
    known = (written > 0) & (read > 0) & (scale <= LARGEST) & (scale >= 1 / LARGEST)
    return torch.where(known, scale, torch.ones_like(scale))


@takes_tensors
def equalized(
    first: Tensor, first_bias: Tensor | None, second: Tensor, scale: Tensor, groups: int = 1
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Weights of two layers with a factor moved from one to the other.

    Args:
        first: ``[D, C, *K]``; nothing that is given is modified.
        first_bias: ``[D]`` or None.
        second: ``[E, D / groups, *K]``.
        scale: ``[D]``, above zero.
        groups: of the second layer.

    Returns:
        ``s W_1``, ``s b_1`` and ``W_2 / s``.

    Raises:
        InputError: a factor is not above zero, or not finite.

    >>> w, b, v = equalized(torch.ones(2, 1), torch.ones(2), torch.ones(1, 2), torch.tensor([2.0, 0.5]))
    >>> w.flatten().tolist(), b.tolist(), v.tolist()
    ([2.0, 0.5], [2.0, 0.5], [[0.5, 2.0]])
    """
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise InputError("ranges are made alike by factors that are finite and above zero")
    rows = scale.to(first.dtype).reshape(-1, *[1] * (first.dim() - 1))
    columns = scale.to(second.dtype).reshape(groups, 1, -1).expand(-1, second.shape[0] // groups, -1)
    columns = columns.reshape(second.shape[0], -1, *[1] * (second.dim() - 2))
    return first * rows, None if first_bias is None else first_bias * scale.to(first_bias.dtype), second / columns
