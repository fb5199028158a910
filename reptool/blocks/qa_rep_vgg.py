"""QARepVGG: y = act(BN(BN(conv KxK(x)) + conv 1x1(x) + x))."""

from __future__ import annotations

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import Size
from ._window import Window, check_identity
from .compose import Parallel


class QARepVGGBlock(nn.Module):
    """RepVGG block that quantizes well: only the KxK branch has a batch normalization, and the sum has one.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K of the window, one number or one per axis; with K = 1 there is no second 1x1
            branch.
        stride: stride of the window.
        padding: padding of the KxK convolution; None keeps the size at stride 1.
        dilation: dilation of the KxK convolution.
        groups: groups of both convolutions.
        identity: whether to have the identity branch; None has it where input and output shapes agree.
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernel, groups that do not divide the channels, or an identity branch that does not
            fit.

    Paper:
        Chu et al., "Make RepVGG Greater Again: A Quantization-aware Approach", AAAI 2024.

    Example:
        >>> import torch
        >>> QARepVGGBlock(8, 8)(torch.zeros(2, 8, 10, 12)).shape
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
        activation: Activation = nn.ReLU,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "QARepVGGBlock",
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            dim=dim,
        )
        check_identity("QARepVGGBlock", identity, window)
        branches: dict[str, nn.Module] = {"dense": window.conv_bn()}
        if max(window.kernel) > 1:
            branches["point"] = window.conv(1, 1)
        if window.keeps_shape and identity is not False:
            branches["identity"] = nn.Identity()
        self.branches = Parallel(branches)
        self.bn = window.norm()
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.bn(self.branches(x)))
        return y
