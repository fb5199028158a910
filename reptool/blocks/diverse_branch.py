"""Diverse branch block: KxK, 1x1, 1x1 then KxK and 1x1 then average pooling, each with BN, added."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import require
from ._window import BATCH_NORM, CONV, Window
from .bn_and_pad import BNAndPad
from .compose import Parallel
from .identity_conv import IdentityConv1x1

AVERAGE: dict[int, type[Any]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class DiverseBranchBlock(nn.Module):
    """Four branches of different depth and receptive field, added.

    `origin` is KxK + BN, `point` 1x1 + BN, `sequence` 1x1 + BN-and-pad + KxK + BN, `average` 1x1 +
    BN-and-pad + average pooling + BN. Where each output channel reads its own input channel (depthwise), a
    1x1 is a mere scale: there is no `point` and no 1x1 before the pooling. With K = 1, `point` and
    `average` would repeat `origin`: only `origin` and `sequence` (1x1 then 1x1) are left.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K of the window, the same along every axis.
        stride: stride of the window.
        padding: 0 to K//2; None takes K//2, as in the paper.
        groups: groups of all convolutions.
        internal_channels: channels between the 1x1 and the KxK of `sequence`; None takes C, or 2C if
            depthwise. With C the 1x1 starts as the identity.
        single_init: start with only `origin` active (the last batch norm of the others has weight 0).
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3 (the paper's is 2).

    Raises:
        InputError: even kernel, padding out of range, groups that do not divide the channels or
            internal_channels.

    Paper:
        Ding et al., "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021.

    Example:
        >>> import torch
        >>> block = DiverseBranchBlock(4, 8)
        >>> list(block.branches)
        ['origin', 'sequence', 'point', 'average']
        >>> block(torch.zeros(2, 4, 10, 10)).shape
        torch.Size([2, 8, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        internal_channels: int | None = None,
        single_init: bool = False,
        activation: Activation = None,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "DiverseBranchBlock", in_channels, out_channels, kernel_size, stride, padding, groups=groups, dim=dim
        )
        size, pad = window.kernel[0], window.padding[0]
        require(
            set(window.kernel) == {size} and set(window.padding) == {pad} and pad <= size // 2,
            f"DiverseBranchBlock with kernel_size={kernel_size}, padding={padding}",
            "equal kernel sizes along all axes and a padding of at most K//2 (an average pooling has no more)",
            "pad the input before the block",
        )
        depthwise = in_channels == out_channels == groups
        if internal_channels is None:
            internal_channels = 2 * in_channels if depthwise else in_channels
        require(
            internal_channels > 0 and internal_channels % groups == 0,
            f"DiverseBranchBlock with internal_channels={internal_channels}, groups={groups}",
            "a positive multiple of groups",
            f"use {max(1, internal_channels // groups) * groups}",
        )
        branches: dict[str, nn.Module] = {
            "origin": window.conv_bn(),
            "sequence": _sequence(window, internal_channels),
        }
        if size > 1 and not depthwise:
            branches["point"] = window.conv_bn(1)
        if size > 1:
            branches["average"] = _pooling(window) if depthwise else _pointwise_pooling(window)
        self.branches = Parallel(branches)
        self.activation = make_activation(activation)
        if single_init:
            for name, branch in self.branches.items():
                nn.init.constant_(branch.get_parameter("bn.weight"), float(name == "origin"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        y: Tensor = self.activation(self.branches(x))
        return y


def _sequence(window: Window, internal: int) -> nn.Module:
    """1x1, BN-and-pad, KxK, BN."""
    reads, writes, groups = window.in_channels, window.out_channels, window.groups
    first = IdentityConv1x1(reads, groups, dim=window.dim) if internal == reads else _point(window, internal)
    second = CONV[window.dim](internal, writes, window.kernel, window.stride, groups=groups, bias=False)
    layers = {"point": first, "pad": _bn_and_pad(internal, window), "conv": second, "bn": window.norm()}
    return nn.Sequential(OrderedDict(layers))


def _pointwise_pooling(window: Window) -> nn.Module:
    """1x1, BN-and-pad, average pooling, BN."""
    layers = {
        "point": _point(window, window.out_channels),
        "pad": _bn_and_pad(window.out_channels, window),
        "pool": AVERAGE[window.dim](window.kernel, window.stride),
        "bn": window.norm(),
    }
    return nn.Sequential(OrderedDict(layers))


def _pooling(window: Window) -> nn.Module:
    """Average pooling, BN."""
    pool = AVERAGE[window.dim](window.kernel, window.stride, window.padding)
    return nn.Sequential(OrderedDict({"pool": pool, "bn": window.norm()}))


def _point(window: Window, writes: int) -> nn.Module:
    point: nn.Module = CONV[window.dim](window.in_channels, writes, 1, groups=window.groups, bias=False)
    return point


def _bn_and_pad(channels: int, window: Window) -> nn.Module:
    pad = window.padding[0]
    norm: nn.Module = BNAndPad(channels, pad, dim=window.dim) if pad else BATCH_NORM[window.dim](channels)
    return norm
