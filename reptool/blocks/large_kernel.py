"""Large kernel with a small parallel one: y = act(BN(conv KxK(x)) + BN(conv kxk(x)))."""

from __future__ import annotations

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import check_odd, require
from ._window import Window
from .compose import Parallel


class LargeKernelBlock(nn.Module):
    """Sum of a large and a small convolution in the same window, each with its own batch normalization.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K of the large kernel (the paper has up to 31).
        stride: stride of the window.
        padding: padding of the large convolution; None keeps the size at stride 1.
        groups: groups of both convolutions (the paper's are depthwise).
        small_kernel: odd size k <= K of the small kernel; None for no small branch.
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3.

    Raises:
        InputError: even kernels, a small kernel larger than the large one, groups that do not divide the
            channels.

    Paper:
        Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", CVPR 2022.

    Example:
        >>> import torch
        >>> LargeKernelBlock(4, 4, 13, groups=4)(torch.zeros(2, 4, 15, 16)).shape
        torch.Size([2, 4, 15, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 31,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        small_kernel: int | None = 5,
        activation: Activation = None,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "LargeKernelBlock",
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            groups=groups,
            dim=dim,
        )
        branches: dict[str, nn.Module] = {"large": window.conv_bn()}
        if small_kernel is not None:
            check_odd("LargeKernelBlock", "small_kernel", (small_kernel,))
            require(
                1 <= small_kernel <= min(window.kernel),
                f"LargeKernelBlock with kernel_size={kernel_size}, small_kernel={small_kernel}",
                "a small kernel of at most the large one's size",
                "use a smaller one or small_kernel=None",
            )
            branches["small"] = window.conv_bn(small_kernel)
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.branches(x))
        return y
