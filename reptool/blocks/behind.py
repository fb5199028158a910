"""Paddings that a convolution's own class applies to its input, as modules in front of a block.

same:   p = max((ceil(n / s) - 1) s + d (K - 1) + 1 - n, 0) zeros along an axis of n, p // 2 of them in front
fixed:  the same number of positions at every size, by any border mode
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SamePad(nn.Module):
    """Zeros around the image, so that a convolution of stride s gives ceil(n / s) positions (TensorFlow's "SAME").

    Args:
        kernel_size: of the convolution behind it, one for each axis.
        stride: of the convolution.
        dilation: of the convolution.

    Example:
        >>> import torch
        >>> SamePad((3,), (2,), (1,))(torch.ones(1, 1, 4)).tolist()
        [[[1.0, 1.0, 1.0, 1.0, 0.0]]]
    """

    def __init__(self, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = tuple(kernel_size), tuple(stride), tuple(dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, ...)."""
        pads: list[int] = []
        sizes = x.shape[-len(self.kernel_size) :]
        for n, k, s, d in zip(sizes, self.kernel_size, self.stride, self.dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pads = [total // 2, total - total // 2, *pads]
        return F.pad(x, pads)

    def extra_repr(self) -> str:
        """The convolution it pads for."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


class FixedPad(nn.Module):
    """The same padding at every size, on each side by itself.

    Args:
        border: as `torch.nn.functional.pad` takes it: the last axis first, before and after.
        mode: "constant" (zeros), "reflect", "replicate" or "circular".

    Example:
        >>> import torch
        >>> FixedPad((2, 0))(torch.ones(1, 1, 2)).tolist()
        [[[0.0, 0.0, 1.0, 1.0]]]
    """

    def __init__(self, border: Sequence[int], mode: str = "constant") -> None:
        super().__init__()
        self.border, self.mode = tuple(border), mode

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, ...)."""
        return F.pad(x, self.border, self.mode)

    def extra_repr(self) -> str:
        """What it adds."""
        return f"{self.border}, mode={self.mode!r}"


class Behind(nn.Module):
    """A block without padding behind the padding of the convolution that it replaces.

    Args:
        pad: `SamePad` or `FixedPad`.
        block: reads the padded image.
    """

    def __init__(self, pad: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.pad, self.block = pad, block

    def forward(self, x: Tensor) -> Tensor:
        """Pad (N, C, ...), then the block."""
        y: Tensor = self.block(self.pad(x))
        return y
