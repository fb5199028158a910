"""The sliding window that all branches of a block share.

A branch with kernel `k` and dilation `d'` inside a window with kernel `K`, dilation `d` and padding `p`
reads the same positions around the same centre exactly if its own padding is, per axis,

    p' = p - (d(K - 1) - d'(k - 1)) / 2

A negative `p'` is a crop. Both output sizes are then `floor((n + 2p - d(K - 1) - 1) / s) + 1` for every
input size `n`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ._checks import Size, check_channels, check_odd, per_axis, require

CONV: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
BATCH_NORM: dict[int, type[Any]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class Crop(nn.Module):
    """Cut a constant number of positions off both ends of every spatial axis.

    Args:
        amounts: positions to cut per axis, each at least 0.

    Example:
        >>> import torch
        >>> Crop((0, 1))(torch.zeros(1, 2, 5, 5)).shape
        torch.Size([1, 2, 5, 3])
    """

    def __init__(self, amounts: tuple[int, ...]) -> None:
        super().__init__()
        self.pads = tuple(-a for a in reversed(amounts) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads)

    def extra_repr(self) -> str:
        return f"pads={self.pads}"


@dataclass(frozen=True)
class Window:
    """Channels and geometry of the one convolution that a block stands for."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def checked(
        cls,
        block: str,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | None = None,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        dim: int = 2,
    ) -> Window:
        """Check the arguments of `block`; `padding=None` keeps the size at stride 1."""
        check_channels(block, in_channels, out_channels, groups)
        kernel = per_axis("kernel_size", kernel_size, dim, 1)
        check_odd(block, "kernel_size", kernel)
        dilations = per_axis("dilation", dilation, dim, 1)
        same = tuple(d * (k // 2) for d, k in zip(dilations, kernel, strict=True))
        require(
            padding_mode in PADDING_MODES,
            f"{block} with padding_mode={padding_mode!r}",
            f"one of {', '.join(PADDING_MODES)}",
            "choose one of these",
        )
        return cls(
            in_channels,
            out_channels,
            kernel,
            per_axis("stride", stride, dim, 1),
            same if padding is None else per_axis("padding", padding, dim, 0),
            dilations,
            groups,
            padding_mode,
        )

    @property
    def dim(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def keeps_shape(self) -> bool:
        """Whether the output has the shape of the input, so that an identity branch fits."""
        centred = self.padding == tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel, strict=True))
        return self.in_channels == self.out_channels and set(self.stride) == {1} and centred

    def conv(self, kernel_size: Size | None = None, dilation: Size | None = None) -> nn.Sequential:
        """A convolution without bias, centred in the window; its layers are `crop` (if needed) and `conv`."""
        kernel = self.kernel if kernel_size is None else per_axis("kernel_size", kernel_size, self.dim, 1)
        dilations = self.dilation if dilation is None else per_axis("dilation", dilation, self.dim, 1)
        outer = zip(self.padding, self.dilation, self.kernel, strict=True)
        inner = zip(dilations, kernel, strict=True)
        padding = [
            p - (d * (k - 1) - d_in * (k_in - 1)) // 2 for (p, d, k), (d_in, k_in) in zip(outer, inner, strict=True)
        ]
        layers = OrderedDict[str, nn.Module]()
        if min(padding) < 0:
            layers["crop"] = Crop(tuple(max(-p, 0) for p in padding))
        layers["conv"] = CONV[self.dim](
            self.in_channels,
            self.out_channels,
            kernel,
            self.stride,
            tuple(max(p, 0) for p in padding),
            dilations,
            self.groups,
            bias=False,
            padding_mode=self.padding_mode,
        )
        return nn.Sequential(layers)

    def conv_bn(
        self, kernel_size: Size | None = None, dilation: Size | None = None, affine: bool = True
    ) -> nn.Sequential:
        """`conv` followed by a batch normalization named `bn`."""
        layers = self.conv(kernel_size, dilation)
        layers.add_module("bn", self.norm(affine))
        return layers

    def norm(self, affine: bool = True) -> nn.Module:
        """A batch normalization of the output channels."""
        norm: nn.Module = BATCH_NORM[self.dim](self.out_channels, affine=affine)
        return norm


def check_identity(block: str, identity: bool | None, window: Window) -> None:
    """An identity branch that was asked for fits."""
    require(
        not identity or window.keeps_shape,
        f"{block} with identity=True, {window.in_channels} to {window.out_channels} channels, "
        f"stride {window.stride}, padding {window.padding}",
        "an output of the input's shape",
        "use equal channels, stride 1 and padding=None, or identity=None",
    )
