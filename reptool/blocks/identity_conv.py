"""A 1x1 convolution that starts as the identity: kernel = I + W with W = 0 at first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._checks import check_channels, per_axis
from ._window import CONVOLVE


class IdentityConv1x1(nn.Module):
    """1x1 convolution without bias whose weight is added to the identity of each group.

    Args:
        channels: channels C of input and output (N, C, ...).
        groups: groups of the convolution.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: groups that do not divide the channels, or another number of axes.

    Paper:
        Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 6, 4, 4)
        >>> torch.equal(IdentityConv1x1(6, groups=2)(x), x)
        True
    """

    identity: Tensor

    def __init__(self, channels: int, groups: int = 1, *, dim: int = 2) -> None:
        super().__init__()
        check_channels("IdentityConv1x1", channels, channels, groups)
        shape = (channels, channels // groups, *per_axis("kernel_size", 1, dim, 1))
        self.groups, self.dim = groups, dim
        self.weight = nn.Parameter(torch.zeros(shape))
        self.register_buffer("identity", nn.init.dirac_(torch.empty(shape), groups))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        return CONVOLVE[self.dim](x, self.identity + self.weight, groups=self.groups)

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return f"{self.weight.shape[0]}, groups={self.groups}"
