"""RepVGG: y = act(BN(conv KxK(x)) + BN(conv 1x1(x)) + BN(x))."""

from __future__ import annotations

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import Size
from ._window import Window, check_identity
from .compose import Parallel


class RepVGGBlock(nn.Module):
    """Sum of a KxK convolution, a 1x1 convolution and the identity, each with its own batch normalization.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K of the window, one number or one per axis; with K = 1 there is no second 1x1
            branch.
        stride: stride of the window.
        padding: padding of the KxK convolution; None keeps the size at stride 1. A padding too small for
            the 1x1 branch to see the borders crops that branch.
        dilation: dilation of the KxK convolution.
        groups: groups of both convolutions.
        identity: whether to have the identity branch; None has it where input and output shapes agree.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernel, groups that do not divide the channels, or an identity branch that does not
            fit.

    Paper:
        Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.

    Example:
        >>> import torch
        >>> block = RepVGGBlock(8, 8)
        >>> list(block.branches)
        ['dense', 'point', 'identity']
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
        identity: bool | None = None,
        padding_mode: str = "zeros",
        activation: Activation = nn.ReLU,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "RepVGGBlock",
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            dim,
        )
        check_identity("RepVGGBlock", identity, window)
        branches: dict[str, nn.Module] = {"dense": window.conv_bn()}
        if max(window.kernel) > 1:
            branches["point"] = window.conv_bn(1, 1)
        if window.keeps_shape and identity is not False:
            branches["identity"] = window.norm()
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.branches(x))
        return y
