"""What a kernel computes, and by how much a module that has this kernel may differ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel, rewindow

EXACT = 1e-11
"""Largest difference allowed, as a fraction of ``sum |W||x| + |b|``."""
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def applied(kernel: Kernel, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What a kernel computes, and ``sum |W||x| + |b|``; None, None where its border is not defined at this size.

    An output without positions is a tensor without elements.
    """
    assert kernel.channels is not None and kernel.axes is not None and kernel.weight is not None
    weight, axes, bias = kernel.grouped_weight(), kernel.axes, kernel.bias
    if not axes:
        flat = weight if kernel.channels.groups == 1 else rewindow(
            kernel.weight, kernel.channels, Channels.grouped(kernel.channels.in_channels, kernel.channels.out_channels)
        )  # fmt: skip
        return F.linear(x, flat, bias), F.linear(x.abs(), flat.abs(), None if bias is None else bias.abs())
    if any(a.out_size(n) <= 0 for a, n in zip(axes, x.shape[2:], strict=True)):
        return x.new_zeros(x.shape[0], weight.shape[0], *[0] * len(axes)), None
    try:
        x = _extended(x, axes)
    except (RuntimeError, NotImplementedError):
        return None, None
    conv: Any = _CONVS[len(axes)]
    geometry = [a.stride for a in axes], 0, [a.dilation for a in axes], kernel.channels.groups
    absolute = None if bias is None else bias.abs()
    return conv(x, weight, bias, *geometry), conv(x.abs(), weight.abs(), absolute, *geometry)


def _extended(x: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    for i, axis in enumerate(axes):
        after = [0, 0] * (len(axes) - 1 - i)
        sides = [*after, axis.before, axis.after]
        if axis.border is Border.ZEROS or not axis.reads_outside:
            x = F.pad(x, sides)
            continue
        n, index = x.shape[2 + i], torch.arange(-axis.before, x.shape[2 + i] + axis.after)
        if axis.border is Border.REPLICATE:
            index = index.clamp(0, n - 1)
        elif axis.border is Border.CIRCULAR:
            if max(axis.before, axis.after) > n:
                raise RuntimeError("wraps around more than once")
            index = index % n
        else:
            if max(axis.before, axis.after) >= n:
                raise RuntimeError("reflects more than there is")
            index = (n - 1) - ((n - 1) - index.abs()).abs()
        x = x.index_select(2 + i, index)
    return x


def with_border(kernel: Kernel, mode: Border) -> Kernel:
    """The same kernel with another border on every axis that reads outside."""
    assert kernel.axes is not None
    return replace(kernel, axes=tuple(replace(a, border=mode) if a.reads_outside else a for a in kernel.axes))
