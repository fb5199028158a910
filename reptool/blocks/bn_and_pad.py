"""Batch normalization followed by padding with the image of zero.

Padding zeros in front of `1x1 -> BN` and padding `v = beta - mean * gamma / sqrt(var + eps)` behind it is
the same, because the 1x1 has no bias; behind it, the statistics do not count the border.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import require


class BNAndPad(nn.Module):
    """Normalize the unpadded map, then pad it with what zero would have become.

    The padding value comes from the running statistics, also while training, and takes no gradient (as the
    authors have it).

    Args:
        channels: channels C of the input (N, C, H, W).
        padding: rows and columns p to add on each side; the output is (N, C, H + 2p, W + 2p).

    Raises:
        InputError: padding below 0.

    Paper:
        Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021.

    Example:
        >>> import torch
        >>> BNAndPad(4, 1)(torch.zeros(2, 4, 5, 6)).shape
        torch.Size([2, 4, 7, 8])
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        require(padding >= 0, f"BNAndPad with padding={padding}", "0 or more", "crop before the convolution")
        self.bn = nn.BatchNorm2d(channels)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H + 2p, W + 2p)."""
        y = self.bn(x)
        v = self.image_of_zero()
        pads = (self.padding, self.padding, self.padding, self.padding)
        return F.pad(y - v, pads) + v

    def image_of_zero(self) -> Tensor:
        """What the running statistics make of a zero, shape (C, 1, 1)."""
        bn = self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        v = bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)
        return v.detach().reshape(-1, 1, 1)

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return f"padding={self.padding}"
