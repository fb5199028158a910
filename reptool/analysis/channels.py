"""How much the channels of a kernel repeat each other (figure 4).

Each kernel channel (its prod(K) entries) becomes a distribution p_i by softmax;

    D_ij = KL(p_i || p_j) = sum_k p_i(k) (log p_i(k) - log p_j(k))

is small where channels i and j are similar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reptool.errors import InputError


@dataclass(frozen=True)
class ChannelSimilarity:
    """Pairwise divergences of kernel channels.

    Args:
        divergence: D (n, n) in float64, zero on the diagonal.
    """

    divergence: Tensor

    @property
    def mean(self) -> float:
        """The mean divergence of different channels; larger means less redundancy."""
        count = len(self.divergence)
        return float(self.divergence.sum() / max(count * (count - 1), 1))

    @property
    def shown(self) -> Tensor:
        """The matrix of the paper's figure, log10(1 + D)."""
        return torch.log10(1 + self.divergence)


def channel_similarity(kernel: Tensor, limit: int | None = 64) -> ChannelSimilarity:
    """KL divergences between the channels of a kernel.

    Args:
        kernel: (C_out, C_in/g, *K), every one of whose C_out C_in/g slices is a channel.
        limit: how many channels to compare (the paper's number), None for all.

    Raises:
        InputError: a pointwise kernel, fewer than two channels, or entries that are not finite.

    Example:
        >>> kernel = torch.zeros(2, 1, 1, 2)
        >>> kernel[1, 0, 0, 0] = 1.0986123  # log 3
        >>> channel_similarity(kernel).divergence
        tensor([[0.0000, 0.1438],
                [0.1308, 0.0000]], dtype=torch.float64)
    """
    if kernel.dim() < 3 or kernel[0, 0].numel() < 2:
        raise InputError(f"a kernel of shape {tuple(kernel.shape)} has no entries to compare per channel.")
    channels = kernel.detach().double().flatten(0, 1).flatten(1)[:limit]
    if len(channels) < 2:
        raise InputError(f"{len(channels)} channel was given, expected at least two to compare.")
    if not bool(channels.isfinite().all()):
        raise InputError("the kernel has entries that are not finite.")
    logs = torch.log_softmax(channels, dim=1)
    entropy = (logs.exp() * logs).sum(1, keepdim=True)
    return ChannelSimilarity((entropy - logs.exp() @ logs.T).clamp_min(0).fill_diagonal_(0))
