"""Edge-oriented block (ECB): 3x3, 1x1 then 3x3, and 1x1 then scaled Sobel and Laplacian filters, added.

The border of every sequence is padded with what its biased 1x1 makes of zero, which is what a 1x1 with
padding 1 does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import check_channels, require
from .compose import Parallel

FILTERS: dict[str, tuple[tuple[float, ...], ...]] = {
    "sobel_x": ((1, 0, -1), (2, 0, -2), (1, 0, -1)),
    "sobel_y": ((1, 2, 1), (0, 0, 0), (-1, -2, -1)),
    "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0)),
}
"""The fixed 3x3 filters by name."""


class EdgeFilter(nn.Module):
    """Fixed 3x3 filter with a trainable scale and bias per channel; it does not pad.

    Args:
        channels: channels C of input (N, C, H, W) and output (N, C, H - 2, W - 2).
        name: "sobel_x", "sobel_y" or "laplacian".

    Raises:
        InputError: unknown filter.

    Paper:
        Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices",
        ACM MM 2021.

    Example:
        >>> import torch
        >>> EdgeFilter(4, "laplacian")(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 4, 4, 4])
    """

    mask: Tensor

    def __init__(self, channels: int, name: str) -> None:
        super().__init__()
        require(
            name in FILTERS,
            f"EdgeFilter with name={name!r}",
            f"one of {', '.join(FILTERS)}",
            "choose one of these",
        )
        self.channels = channels
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1) * 1e-3)
        self.bias = nn.Parameter(torch.randn(channels) * 1e-3)
        self.register_buffer("mask", torch.tensor(FILTERS[name])[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H - 2, W - 2)."""
        return F.conv2d(x, self.scale * self.mask, self.bias, groups=self.channels)


class EdgeOrientedBlock(nn.Module):
    """Sum of a 3x3 convolution, an expanding 1x1-3x3 and three sequences of a 1x1 and an edge filter.

    Args:
        in_channels: channels C of the input (N, C, H, W).
        out_channels: channels O of the output (N, O, H, W).
        depth_multiplier: channels between the 1x1 and the 3x3 of the expanding sequence, as a multiple of O.
        identity: whether the input is added too (the paper's variant with C = O).
        activation: class or function making the activation, a module, or None (the paper's is nn.PReLU(O)).

    Raises:
        InputError: non-positive channels or multiplier, identity with C != O.

    Paper:
        Zhang et al., "Edge-oriented Convolution Block for Real-time Super Resolution on Mobile Devices",
        ACM MM 2021.

    Example:
        >>> import torch
        >>> block = EdgeOrientedBlock(4, 4, identity=True)
        >>> list(block.branches)
        ['dense', 'expand', 'sobel_x', 'sobel_y', 'laplacian', 'identity']
        >>> block(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 4, 6, 6])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depth_multiplier: float = 2.0,
        identity: bool = False,
        activation: Activation = None,
    ) -> None:
        super().__init__()
        check_channels("EdgeOrientedBlock", in_channels, out_channels, 1)
        wide = int(out_channels * depth_multiplier)
        require(
            wide >= 1,
            f"EdgeOrientedBlock with depth_multiplier={depth_multiplier}",
            "at least one channel in between",
            "use a larger multiplier",
        )
        require(
            not identity or in_channels == out_channels,
            f"EdgeOrientedBlock with identity=True, in_channels={in_channels}, out_channels={out_channels}",
            "equal channels",
            "use identity=False",
        )
        branches: dict[str, nn.Module] = {
            "dense": nn.Conv2d(in_channels, out_channels, 3, padding=1),
            "expand": nn.Sequential(nn.Conv2d(in_channels, wide, 1, padding=1), nn.Conv2d(wide, out_channels, 3)),
        }
        for name in FILTERS:
            point = nn.Conv2d(in_channels, out_channels, 1, padding=1)
            branches[name] = nn.Sequential(point, EdgeFilter(out_channels, name))
        if identity:
            branches["identity"] = nn.Identity()
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W)."""
        y: Tensor = self.activation(self.branches(x))
        return y
