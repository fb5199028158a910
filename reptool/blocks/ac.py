"""ACNet: y = BN(conv KxK(x)) + BN(conv Kx1(x)) + BN(conv 1xK(x)), all centred in the same window.

In 3d: the cube and a line along each of the three axes.
"""

from __future__ import annotations

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import require
from ._window import Window
from .compose import Parallel

LINES = {2: ("vertical", "horizontal"), 3: ("deep", "vertical", "horizontal")}
"""The one-dimensional branches, in the order of the axes they run along."""


class ACBlock(nn.Module):
    """Square, vertical and horizontal convolution, each with its own batch normalization, added.

    With `padding < K//2` the vertical branch reads the input cropped by `K//2 - padding` columns on each
    side, the horizontal one by as many rows, so that all three see the same windows; a larger padding pads
    them accordingly.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K >= 3 of the square window.
        stride: stride of the window.
        padding: padding of the square convolution, any number from 0 on; None keeps the size at stride 1.
        dilation: dilation of all three convolutions.
        groups: groups of all three convolutions.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        affine: whether the batch normalizations have weights.
        gamma_init: initial weight of all three batch normalizations (the authors also use 1/3); None leaves
            it at 1.
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 2 or 3 (the paper's is 2).

    Raises:
        InputError: one spatial axis, even or 1x1 kernel, groups that do not divide the channels, gamma_init
            without affine.

    Paper:
        Ding et al., "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
        Blocks", ICCV 2019.

    Example:
        >>> import torch
        >>> ACBlock(4, 8, 5, stride=2, padding=1)(torch.zeros(2, 4, 11, 12)).shape
        torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        affine: bool = True,
        gamma_init: float | None = None,
        activation: Activation = None,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        require(dim in LINES, f"ACBlock with dim={dim}", "2 or 3 axes", "use RepVGGBlock or MobileOneBlock along one")
        window = Window.checked(
            "ACBlock", in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, dim
        )
        size = window.kernel[0]
        require(
            set(window.kernel) == {size} and size > 1,
            f"ACBlock with kernel_size={kernel_size}",
            "one odd number from 3 on",
            "use a plain convolution for 1x1 and rectangular kernels",
        )
        require(
            affine or gamma_init is None,
            f"ACBlock with affine=False and gamma_init={gamma_init}",
            "batch normalizations with weights",
            "leave out gamma_init or use affine=True",
        )
        branches = {"square": window.conv_bn(affine=affine)}
        for axis, name in enumerate(LINES[dim]):
            line = tuple(size if i == axis else 1 for i in range(dim))
            branches[name] = window.conv_bn(line, affine=affine)
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)
        if gamma_init is not None:
            for branch in self.branches.values():
                nn.init.constant_(branch.get_parameter("bn.weight"), gamma_init)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.branches(x))
        return y
