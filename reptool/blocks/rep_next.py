"""RepNeXt: depthwise kernels of several sizes on chunks of channels, and a block with an activated shortcut.

unit(x)  = BN(cat(dw 7x7(x_1), dw 5x5(x_2), dw 3x3(x_3)))
block(x) = pw_2(a(pw_1(unit(x)))) + a(x)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import require
from ._window import BATCH_NORM, CONV, Window


class RepNeXtUnit(nn.Module):
    """Depthwise convolutions of different sizes on consecutive chunks of channels, concatenated, normalized.

    Args:
        channels: channels C of input and output (N, C, ...).
        kernel_sizes: odd kernel size of each chunk; the chunks are equal, the first ones take what is left
            over.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernels, no kernels, or more kernels than channels.

    Paper:
        "An Introduction to Structural Reparameterization", the RepNeXt block of section 6.

    Example:
        >>> import torch
        >>> unit = RepNeXtUnit(8)
        >>> [(conv.groups, conv.kernel_size) for conv in unit.convs]
        [(3, (7, 7)), (3, (5, 5)), (2, (3, 3))]
        >>> unit(torch.zeros(1, 8, 9, 10)).shape
        torch.Size([1, 8, 9, 10])
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int] = (7, 5, 3), *, dim: int = 2) -> None:
        super().__init__()
        chunks = len(kernel_sizes)
        require(
            1 <= chunks <= channels,
            f"RepNeXtUnit with channels={channels}, kernel_sizes={tuple(kernel_sizes)}",
            "at least one kernel and one channel for each",
            "use fewer kernels or more channels",
        )
        self.sizes = [channels // chunks + (i < channels % chunks) for i in range(chunks)]
        windows = [
            Window.checked("RepNeXtUnit", size, size, kernel, groups=size, dim=dim)
            for size, kernel in zip(self.sizes, kernel_sizes, strict=True)
        ]
        self.convs = nn.ModuleList(window.conv().get_submodule("conv") for window in windows)
        self.bn = BATCH_NORM[dim](channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        chunks = torch.split(x, self.sizes, dim=1)
        y: Tensor = self.bn(torch.cat([conv(chunks[i]) for i, conv in enumerate(self.convs)], dim=1))
        return y


class RepNeXtBlock(nn.Module):
    """A unit and two pointwise convolutions with an activation in between, plus the activated input.

    Args:
        channels: channels C of input and output (N, C, ...).
        kernel_sizes: odd kernel sizes of the unit.
        expansion: channels between the pointwise convolutions, as a multiple of C.
        activation: class or function making an elementwise activation, a module, or None; it is applied
            twice, so that a trained one has the same parameters in both places.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: as RepNeXtUnit, and an expansion below 1.

    Paper:
        "An Introduction to Structural Reparameterization", section 6.

    Example:
        >>> import torch
        >>> RepNeXtBlock(8)(torch.zeros(1, 8, 9, 10)).shape
        torch.Size([1, 8, 9, 10])
    """

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int] = (7, 5, 3),
        expansion: int = 4,
        activation: Activation = nn.GELU,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        require(expansion >= 1, f"RepNeXtBlock with expansion={expansion}", "1 or more", "use 4 as in the source")
        self.unit = RepNeXtUnit(channels, kernel_sizes, dim=dim)
        self.point1 = CONV[dim](channels, expansion * channels, 1)
        self.point2 = CONV[dim](expansion * channels, channels, 1)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        hidden = self.activation(self.point1(self.unit(x)))
        y: Tensor = self.point2(hidden) + self.activation(x)
        return y
