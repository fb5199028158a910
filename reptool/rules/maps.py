"""What a rule says that an operation computes, in the terms of `torch.nn`: `Conv`, `Linear`, `Scale`.

Each becomes a `Kernel` (see `reptool.algebra.kernel`), with its values in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.errors import InputError

MODES = ("zeros", "reflect", "replicate", "circular")
Each: TypeAlias = "int | Sequence[int]"
"""One number for all axes, or one for each."""


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution along as many axes as its weight has behind the first two.

    Args:
        weight: ``[out, in / groups, *kernel_size]``, a floating dtype; in float64 where it is computed.
        bias: ``[out]`` or None.
        stride: one number, or one for each axis.
        padding: one number, one for each axis, or one pair ``(before, after)`` for each; negative ones crop.
        dilation: one number, or one for each axis.
        groups: as of `nn.Conv2d`.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.

    >>> blur = Conv(torch.ones(4, 1, 3, 3) / 9, padding=1, groups=4)
    >>> blur.kernel().axes[0]
    Axis(kernel_size=3, stride=1, dilation=1, before=1, after=1, border=<Border.ZEROS: 'zeros'>)
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: Each = 1
    padding: Each | Sequence[Sequence[int]] = 0
    dilation: Each = 1
    groups: int = 1
    padding_mode: str = "zeros"

    def kernel(self) -> Kernel:
        """The same as a `Kernel`.

        Raises:
            InputError: shapes, groups or geometry that do not fit.
        """
        weight = _floating("weight", self.weight)
        count = weight.dim() - 2
        if count not in (1, 2, 3):
            raise InputError(f"Conv takes a weight [out, in / groups, *kernel_size], got shape {tuple(weight.shape)}")
        if type(self.groups) is not int or self.groups < 1 or weight.shape[0] % self.groups:
            raise InputError(f"Conv has groups={self.groups!r}, which do not divide its {weight.shape[0]} outputs")
        if self.padding_mode not in MODES:
            raise InputError(f"Conv has padding_mode={self.padding_mode!r}; there are {', '.join(MODES)}")
        border = Border(self.padding_mode)
        pads = self._pads(count)
        stride, dilation = _each("stride", self.stride, count), _each("dilation", self.dilation, count)
        if min(*stride, *dilation) < 1:
            raise InputError(f"Conv has stride {stride} and dilation {dilation}; give positive numbers")
        axes = tuple(
            Axis(k, s, d, before, after, border)
            for k, s, d, (before, after) in zip(weight.shape[2:], stride, dilation, pads, strict=True)
        )
        channels = Channels.grouped(weight.shape[1] * self.groups, weight.shape[0], self.groups)
        bias = _bias(self.bias, weight.shape[0])
        return Kernel(channels, axes, weight.double(), bias, bias is not None)

    def _pads(self, count: int) -> list[tuple[int, int]]:
        given = self.padding
        if isinstance(given, Sequence) and given and all(isinstance(p, Sequence) for p in given):
            pairs = [_each("padding", p, 2) for p in given if isinstance(p, Sequence)]
            if len(pairs) != count:
                raise InputError(f"Conv has {len(pairs)} pairs of padding for {count} axes")
            return [(p[0], p[1]) for p in pairs]
        return [(p, p) for p in _each("padding", given, count)]


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer along the last axis.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.

    >>> Linear(torch.ones(2, 3)).kernel().channels
    Channels(3->2, width=3)
    """

    weight: Tensor
    bias: Tensor | None = None

    def kernel(self) -> Kernel:
        """The same as a `Kernel`.

        Raises:
            InputError: shapes that do not fit.
        """
        weight = _floating("weight", self.weight)
        if weight.dim() != 2:
            raise InputError(f"Linear takes a weight [out, in], got shape {tuple(weight.shape)}")
        bias = _bias(self.bias, weight.shape[0])
        channels = Channels.grouped(weight.shape[1], weight.shape[0])
        return Kernel(channels, (), weight.double(), bias, bias is not None)


@dataclass(frozen=True, eq=False)
class Scale:
    """One factor and one summand for each channel: a norm with constants, a layer scale.

    Args:
        scale: ``[channels]``.
        shift: ``[channels]`` or None.
        axes: how many axes lie behind the channels: 2 for images, 0 for ``[..., channels]``.

    >>> Scale(torch.tensor([2.0, 3.0]), axes=2).kernel().weight.flatten().tolist()
    [2.0, 3.0]
    """

    scale: Tensor
    shift: Tensor | None = None
    axes: int = 2

    def kernel(self) -> Kernel:
        """The same as a `Kernel`.

        Raises:
            InputError: shapes that do not fit.
        """
        scale = _floating("scale", self.scale)
        if scale.dim() != 1 or type(self.axes) is not int or not 0 <= self.axes <= 3:
            raise InputError(
                f"Scale takes a scale [channels] and 0 to 3 axes, got {tuple(scale.shape)} and {self.axes!r}"
            )
        shift = _bias(self.shift, len(scale), "shift")
        weight = scale.double().reshape(-1, 1, *[1] * self.axes)
        channels = Channels.grouped(len(scale), len(scale), len(scale))
        return Kernel(channels, (Axis(),) * self.axes, weight, shift, shift is not None)


def _floating(what: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        shown = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the {what} is a {shown}; give a floating point tensor")
    return value.detach()


def _bias(value: Tensor | None, count: int, what: str = "bias") -> Tensor | None:
    if value is None:
        return None
    if tuple(_floating(what, value).shape) != (count,):
        raise InputError(f"the {what} has shape {tuple(value.shape)}, and there are {count} outputs")
    return value.detach().double()


def _each(what: str, value: object, count: int) -> tuple[int, ...]:
    numbers = (value,) * count if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(numbers) != count or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise InputError(f"{what} is {value!r}; give one integer or {count} of them")
    return tuple(int(n) for n in numbers)


def as_kernel(found: object) -> Kernel:
    """What a lift returned, as a kernel with values in float64.

    Raises:
        InputError: it is none of what a lift may return.
    """
    if isinstance(found, (Conv, Linear, Scale)):
        return found.kernel()
    if isinstance(found, Kernel) and found.weight is not None and found.channels is not None and found.axes is not None:
        if found.weight.dtype is torch.float64:
            return found
        raise InputError(f"the Kernel is in {found.weight.dtype}; make it of the float64 values that the rule is given")
    raise InputError(
        f"it returned a {type(found).__name__}; return a reptool.rules Conv, Linear, Scale or Kernel, "
        "a Refusal, or None"
    )
