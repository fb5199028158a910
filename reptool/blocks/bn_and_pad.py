"""Batch normalization followed by padding with the image of zero.

Padding zeros in front of `1x1 -> BN` and padding `v = beta - mean * gamma / sqrt(var + eps)` behind it is
the same, because the 1x1 has no bias; behind it, the statistics do not count the border.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import per_axis, require
from ._window import BATCH_NORM


class BNAndPad(nn.Module):
    """Normalize the unpadded map, then pad it with what zero would have become.

    The padding value comes from the running statistics, also while training, and takes no gradient (as the
    authors have it).

    Args:
        channels: channels C of the input (N, C, ...).
        padding: positions p to add on each side of every spatial axis.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: padding below 0, or another number of axes.

    Paper:
        Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021.

    Example:
        >>> import torch
        >>> BNAndPad(4, 1)(torch.zeros(2, 4, 5, 6)).shape
        torch.Size([2, 4, 7, 8])
    """

    def __init__(self, channels: int, padding: int, *, dim: int = 2) -> None:
        super().__init__()
        require(padding >= 0, f"BNAndPad with padding={padding}", "0 or more", "crop before the convolution")
        self.padding = per_axis("padding", padding, dim, 0)[0]
        self.bn = BATCH_NORM[dim](channels)
        self.pads, self.ones = (padding, padding) * dim, (1,) * dim

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, C, ...), 2p positions longer along every spatial axis."""
        y = self.bn(x)
        v = self.image_of_zero()
        return F.pad(y - v, self.pads) + v

    def image_of_zero(self) -> Tensor:
        """What the running statistics make of a zero, shape (C, 1, ...)."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        v = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        return v.detach().reshape(-1, *self.ones)

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return f"padding={self.padding}"
