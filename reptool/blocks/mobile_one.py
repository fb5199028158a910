"""MobileOne: y = act(sum of n BN(conv KxK(x)) + BN(conv 1x1(x)) + BN(x))."""

from __future__ import annotations

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import Size, require
from ._window import Window, check_identity
from .compose import Parallel


class MobileOneBlock(nn.Module):
    """Sum of several KxK convolutions, a 1x1 convolution and the identity, each with batch normalization.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K of the window, one number or one per axis.
        stride: stride of the window.
        padding: padding of the KxK convolutions; None keeps the size at stride 1.
        dilation: dilation of the KxK convolutions.
        groups: groups of all convolutions.
        conv_branches: number n of KxK convolutions (the paper uses up to 4).
        scale: whether to have the 1x1 branch; with K = 1 there is none.
        identity: whether to have the identity branch; None has it where input and output shapes agree.
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernel, groups that do not divide the channels, an identity that does not fit, no
            branch.

    Paper:
        Vasu et al., "MobileOne: An Improved One Millisecond Mobile Backbone", CVPR 2023.

    Example:
        >>> import torch
        >>> block = MobileOneBlock(8, 8, groups=8, conv_branches=2)
        >>> list(block.branches)
        ['conv0', 'conv1', 'scale', 'identity']
        >>> block(torch.zeros(2, 8, 10, 12)).shape
        torch.Size([2, 8, 10, 12])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size = 3,
        stride: Size = 1,
        padding: Size | None = None,
        dilation: Size = 1,
        groups: int = 1,
        conv_branches: int = 1,
        scale: bool = True,
        identity: bool | None = None,
        activation: Activation = nn.ReLU,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "MobileOneBlock",
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            dim=dim,
        )
        check_identity("MobileOneBlock", identity, window)
        require(
            conv_branches >= 0,
            f"MobileOneBlock with conv_branches={conv_branches}",
            "0 or more",
            "use 1 for the plain block",
        )
        branches: dict[str, nn.Module] = {f"conv{i}": window.conv_bn() for i in range(conv_branches)}
        if scale and max(window.kernel) > 1:
            branches["scale"] = window.conv_bn(1, 1)
        if window.keeps_shape and identity is not False:
            branches["identity"] = window.norm()
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.branches(x))
        return y
