"""OREPA: the branches of a diverse block are added as kernels, so that training runs one convolution a step.

    y = act(BN(x * sum_b s_b W_b))

Each branch is linear and scaled by `s_b`, one number per output channel, instead of being normalized.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._activation import Activation, make_activation
from ._checks import require
from ._window import CONVOLVE, Window

SCALES = {"origin": 0.25, "average": 0.25, "prior": 0.0, "sequence": 0.5, "point": 1.0, "separable": 0.5}
"""The branches and the authors' initial scales."""


class OREPA(nn.Module):
    """Six branches added as kernels, one convolution, one batch normalization.

    Its layers are `conv` (an `OnlineConv`, which makes the kernel), `bn` and `activation`.

    Args:
        in_channels: channels C of the input (N, C, ...).
        out_channels: channels O of the output (N, O, ...).
        kernel_size: odd size K >= 3 of the kernel.
        stride: stride of the convolution.
        padding: padding of the convolution; None keeps the size at stride 1.
        dilation: dilation of the convolution.
        groups: groups g of the convolution.
        internal_channels: channels between the two layers of `sequence`; None takes C, or 2C with more than
            4 groups.
        expansion: depthwise kernels per input channel of `separable`.
        single_init: start with only `origin` active.
        activation: class or function making the activation, a module, or None.
        dim: number of spatial axes, 1, 2 or 3 (the paper's is 2).

    Raises:
        InputError: even, 1x1 or rectangular kernel, groups that do not divide the channels.

    Paper:
        Hu et al., "Online Convolutional Re-parameterization", CVPR 2022.

    Example:
        >>> import torch
        >>> block = OREPA(4, 8)
        >>> block.conv.weight().shape
        torch.Size([8, 4, 3, 3])
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
        dilation: int = 1,
        groups: int = 1,
        internal_channels: int | None = None,
        expansion: int = 8,
        single_init: bool = False,
        activation: Activation = None,
        *,
        dim: int = 2,
    ) -> None:
        super().__init__()
        window = Window.checked(
            "OREPA", in_channels, out_channels, kernel_size, stride, padding, dilation, groups, dim=dim
        )
        self.conv = OnlineConv(window, internal_channels, expansion, single_init)
        self.bn = window.norm()
        self.activation = make_activation(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...) with one convolution."""
        y: Tensor = self.activation(self.bn(self.conv(x)))
        return y


class OnlineConv(nn.Module):
    """A convolution without bias whose kernel is a sum of scaled branches.

    `origin` is a KxK kernel, `average` a 1x1 followed by average pooling, `prior` a 1x1 followed by fixed
    cosine filters, `sequence` a 1x1 (starting as the identity) followed by KxK, `point` a 1x1, and
    `separable` a depthwise KxK followed by a 1x1.

    Args:
        window: channels and geometry.
        internal_channels: as for `OREPA`.
        expansion: as for `OREPA`.
        single_init: as for `OREPA`.

    Raises:
        InputError: see `OREPA`.
    """

    average_filter: Tensor
    prior_filter: Tensor
    identity: Tensor

    def __init__(self, window: Window, internal_channels: int | None, expansion: int, single_init: bool) -> None:
        super().__init__()
        in_channels, out_channels, groups = window.in_channels, window.out_channels, window.groups
        size = window.kernel[0]
        require(
            set(window.kernel) == {size} and size > 1,
            f"OREPA with kernel_size={window.kernel}",
            "one odd number from 3 on",
            "use a plain convolution for 1x1 and rectangular kernels",
        )
        if internal_channels is None:
            internal_channels = in_channels if groups <= 4 else 2 * in_channels
        require(
            internal_channels > 0 and internal_channels % groups == 0 and expansion > 0,
            f"OREPA with internal_channels={internal_channels}, groups={groups}, expansion={expansion}",
            "positive numbers and internal_channels a multiple of groups",
            f"use internal_channels={max(1, internal_channels // groups) * groups} and expansion=8",
        )
        per_group, full, single = in_channels // groups, window.kernel, (1,) * window.dim
        self.origin = _kaiming(out_channels, per_group, *full)
        self.average = _kaiming(out_channels, per_group, *single)
        self.prior = _kaiming(out_channels, per_group, *single)
        self.point = _kaiming(out_channels, per_group, *single)
        self.sequence_point = nn.Parameter(torch.zeros(internal_channels, per_group))
        self.sequence = _kaiming(out_channels, internal_channels // groups, *full)
        self.separable = _kaiming(in_channels * expansion, 1, *full)
        self.separable_point = _kaiming(out_channels, per_group * expansion, *single)
        starts = {name: float(name == "origin") for name in SCALES} if single_init else SCALES
        self.scales = nn.ParameterDict(
            {name: nn.Parameter(torch.full((out_channels, 1, *single), start)) for name, start in starts.items()}
        )
        repeats = math.ceil(internal_channels / per_group)
        self.register_buffer("identity", torch.eye(per_group).repeat(repeats, 1)[:internal_channels])
        self.register_buffer("average_filter", torch.full((1, 1, *full), 1 / size**window.dim))
        self.register_buffer("prior_filter", cosine_filters(out_channels, size, window.dim))
        self.dim, self.size, self.per_group, self.expansion = window.dim, size, per_group, expansion
        self.stride, self.padding = window.stride, window.padding
        self.dilation, self.groups = window.dilation, groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to (N, O, ...)."""
        return CONVOLVE[self.dim](x, self.weight(), None, self.stride, self.padding, self.dilation, self.groups)

    def weight(self) -> Tensor:
        """The kernel in use, shape (O, C/g, K, K)."""
        s = self.scales
        return (
            s["origin"] * self.origin
            + s["average"] * (self.average * self.average_filter)
            + s["prior"] * (self.prior * self.prior_filter)
            + s["sequence"] * self._sequence()
            + s["point"] * F.pad(self.point, (self.size // 2,) * (2 * self.dim))
            + s["separable"] * self._separable()
        )

    def _sequence(self) -> Tensor:
        """1x1 then KxK, group by group: sum over the t channels between them."""
        first = (self.identity + self.sequence_point).unflatten(0, (self.groups, -1))
        second = self.sequence.unflatten(0, (self.groups, -1))
        return torch.einsum("gti,got...->goi...", first, second).flatten(0, 1)

    def _separable(self) -> Tensor:
        """Depthwise KxK then 1x1, group by group: sum over the e depthwise kernels of each input channel."""
        first = self.separable.reshape(self.groups, self.per_group, self.expansion, *(self.size,) * self.dim)
        second = self.separable_point.reshape(self.groups, -1, self.per_group, self.expansion)
        return torch.einsum("gie...,goie->goi...", first, second).flatten(0, 1)

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return f"{tuple(self.origin.shape)}, stride={self.stride}, padding={self.padding}, groups={self.groups}"


def cosine_filters(channels: int, size: int, dim: int = 2) -> Tensor:
    """Make cosine filters (channels, 1, *size): in 2d half vary along the rows, half along the columns.

    Args:
        channels: number of filters.
        size: positions along every axis.
        dim: number of axes; each has its share of the filters, with frequencies from 1 on.

    Example:
        >>> import torch
        >>> cosine_filters(6, 3)[0, 0, :, 0]
        tensor([ 8.6603e-01, ..., -8.6603e-01])
    """
    position = torch.arange(size, dtype=torch.float64) + 0.5
    filters = []
    for axis, own in enumerate(torch.arange(channels).tensor_split(dim)):
        frequency = torch.arange(len(own), dtype=torch.float64) + 1
        wave = torch.cos(math.pi / size * frequency[:, None] * position)
        shape = [size if i == axis else 1 for i in range(dim)]
        filters.append(wave.reshape(-1, 1, *shape).expand(-1, 1, *(size,) * dim))
    return torch.cat(filters).to(torch.get_default_dtype())


def _kaiming(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(shape)))
