"""The meaning of a `Kernel`, written from the formula in `reptool.algebra.kernel` and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.errors import InputError

_CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def dense_weight(kernel: Kernel, channels: int | None = None) -> Tensor:
    """The weight of `kernel` with every channel written out.

    Args:
        kernel: a materialized kernel.
        channels: how many channels to write it for where it fits any number.

    Returns:
        ``[O, C, *K]``.

    Raises:
        InputError: the kernel has no weight.

    >>> from reptool.algebra.kernel import identity
    >>> dense_weight(identity(), channels=2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if kernel.weight is None:
        raise InputError("the kernel is a shape: give one with a weight")
    if kernel.channels is None:
        assert channels is not None
        first, rows, total = (
            list(range(channels)),
            kernel.weight.expand(channels, *kernel.weight.shape[1:]),
            channels,
        )
    else:
        first, rows, total = kernel.channels.offset.tolist(), kernel.weight, kernel.channels.in_channels
    dense = rows.new_zeros(len(first), total, *rows.shape[2:])
    for row, start in enumerate(first):
        dense[row, start : start + rows.shape[1]] = rows[row]
    return dense


def apply_kernel(kernel: Kernel, x: Tensor) -> Tensor:
    """What `kernel` computes, by brute force.

    Zeros win where an axis extended by zeros and one extended by a constant meet.

    Args:
        kernel: a materialized kernel with known borders.
        x: ``[N, C, *sizes]``, or ``[..., C]`` for a kernel without spatial axes.

    Returns:
        ``[N, O, *sizes]`` or ``[..., O]``.

    Raises:
        InputError: no weight, an unknown border, a transposed kernel, or an image too small to reflect.

    >>> from reptool.algebra.kernel import Axis, Border, Channels, Kernel
    >>> sum_of_three = Kernel(Channels.grouped(1, 1), (Axis(3, before=1, after=1),), torch.ones(1, 1, 3))
    >>> apply_kernel(sum_of_three, torch.tensor([[[1.0, 2.0, 3.0]]])).tolist()
    [[[3.0, 6.0, 5.0]]]
    """
    if kernel.transposed is not None:
        raise InputError("a transposed kernel has no border mode: compare it with `conv_transpose` itself")
    axes = kernel.axes if kernel.axes is not None else (Axis(),) * (x.dim() - 2)
    channels = x.shape[1] if axes else x.shape[-1]
    weight, bias = dense_weight(kernel, channels), kernel.bias
    if bias is not None and kernel.channels is None:
        bias = bias.expand(channels)
    if not axes:
        return F.linear(x, weight, bias)
    if kernel.axes is None:
        weight = weight.reshape(*weight.shape[:2], *[1] * len(axes))
    for i, axis in sorted(enumerate(axes), key=lambda pair: pair[1].border is Border.ZEROS):
        x = _extended(x, i + 2, axis.before, axis.after, axis.border, kernel.border_value)
    return _CONVOLUTION[len(axes)](x, weight, bias, [a.stride for a in axes], 0, [a.dilation for a in axes])


def _extended(x: Tensor, dim: int, before: int, after: int, border: Border, value: Tensor | None) -> Tensor:
    """``x~`` at the positions ``-before .. n + after - 1`` of axis `dim`."""
    size = x.shape[dim]
    position = torch.arange(-before, size + after)
    outside = (position < 0) | (position >= size)
    if not outside.any():
        return x.index_select(dim, position)
    if border is Border.UNKNOWN:
        raise InputError("the border is unknown: the kernel has no meaning outside the image")
    if border is Border.REFLECT and (before >= size or after >= size):
        raise InputError(f"an image of {size} cannot be reflected by {before} and {after}")
    source = {
        Border.REFLECT: torch.where(position < 0, -position, torch.where(outside, 2 * (size - 1) - position, position)),
        Border.CIRCULAR: position % size,
    }.get(border, position.clamp(0, size - 1))
    picked = x.index_select(dim, source)
    if border not in (Border.ZEROS, Border.CONSTANT):
        return picked
    mask = outside.reshape(-1, *[1] * (x.dim() - dim - 1))
    if border is Border.ZEROS:
        return picked.masked_fill(mask, 0.0)
    if value is None:
        raise InputError("the border is a constant that is not given")
    return torch.where(mask, value.to(x).reshape(-1, *[1] * (x.dim() - 2)), picked)
