"""RepMixer: y = x + s * (M(x) - BN(x)), M a depthwise MobileOne block, s one number per channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._checks import Size
from ._window import BATCH_NORM
from .mobile_one import MobileOneBlock


class RepMixer(nn.Module):
    """Token mixer without attention: a depthwise block minus a normalization, scaled, added to the input.

    Args:
        channels: channels C of input and output (N, C, ...).
        kernel_size: odd size K of the depthwise convolution.
        layer_scale: initial value of the scale s, one per channel; None for no scale.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernel or less than one channel.

    Paper:
        Vasu et al., "FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization", ICCV
        2023.

    Example:
        >>> import torch
        >>> RepMixer(8)(torch.zeros(2, 8, 10, 12)).shape
        torch.Size([2, 8, 10, 12])
    """

    layer_scale: nn.Parameter | None

    def __init__(self, channels: int, kernel_size: Size = 3, layer_scale: float | None = 1e-5, *, dim: int = 2) -> None:
        super().__init__()
        self.mixer = MobileOneBlock(channels, channels, kernel_size, groups=channels, activation=None, dim=dim)
        self.norm = BATCH_NORM[dim](channels)
        scale = None if layer_scale is None else nn.Parameter(torch.full((channels,) + (1,) * dim, layer_scale))
        self.register_parameter("layer_scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        difference: Tensor = self.mixer(x) - self.norm(x)
        if self.layer_scale is not None:
            difference = self.layer_scale * difference
        return x + difference
