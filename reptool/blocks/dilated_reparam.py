"""Dilated re-param block: a large depthwise kernel and smaller dilated ones inside its window, added."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ._checks import check_odd, require
from ._window import Window
from .compose import Parallel

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""The authors' (kernel, dilation) of the small branches, by the size of the large kernel."""


class DilatedReparamBlock(nn.Module):
    """Depthwise KxK convolution and dilated small ones, each with its own batch normalization, added.

    Args:
        channels: channels C of input and output (N, C, ...).
        kernel_size: odd size K of the large kernel.
        branches: (kernel k, dilation r) of the small branches, with r(k - 1) + 1 <= K; None takes the
            authors' for K = 5, 7, ..., 17.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernels, a branch larger than the window or given twice, no authors' branches for
            this K.

    Paper:
        Ding et al., "UniRepLKNet: A Universal Perception Large-Kernel ConvNet for Audio, Video, Point Cloud,
        Time-Series and Image Recognition", CVPR 2024.

    Example:
        >>> import torch
        >>> block = DilatedReparamBlock(4, 7)
        >>> list(block.branches)
        ['large', 'k5r1', 'k3r2', 'k3r3']
        >>> block(torch.zeros(2, 4, 10, 12)).shape
        torch.Size([2, 4, 10, 12])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        branches: Sequence[tuple[int, int]] | None = None,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked("DilatedReparamBlock", channels, channels, kernel_size, groups=channels, dim=dim)
        require(
            branches is not None or kernel_size in BRANCHES,
            f"DilatedReparamBlock with kernel_size={kernel_size} and no branches",
            f"one of {', '.join(map(str, BRANCHES))}",
            "pass branches=[(kernel, dilation), ...] for other sizes",
        )
        small = BRANCHES[kernel_size] if branches is None else tuple(branches)
        check_odd("DilatedReparamBlock", "branches' kernels", tuple(k for k, _ in small))
        require(
            all(k >= 1 and r >= 1 and r * (k - 1) + 1 <= kernel_size for k, r in small)
            and len(set(small)) == len(small),
            f"DilatedReparamBlock with kernel_size={kernel_size}, branches={small}",
            "different (kernel k, dilation r) with r(k - 1) + 1 <= kernel_size",
            "use a larger kernel_size or smaller branches",
        )
        self.branches = Parallel({"large": window.conv_bn(), **{f"k{k}r{r}": window.conv_bn(k, r) for k, r in small}})

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the same shape."""
        y: Tensor = self.branches(x)
        return y
