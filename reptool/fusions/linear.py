"""Paradigm 9: a linear layer and a pointwise convolution are one map on two layouts.

::

    Linear:  y[..., o] = sum_c W[o, c] x[..., c] + b[o]
    1x1:     y[n, o, p] = sum_c W[o, c, 0] x[n, c, p] + b[o]

Domain: exact both ways for a kernel of one tap, stride 1, no padding; groups become a block-diagonal matrix.
Refused elsewhere: `layout`.

A linear layer on the whole of a map of known size is a convolution whose kernel is as large as the map::

    sum_{c,p} W[o, (c, p)] y[n, (c, p)]  =  (W' * y)[n, o, 0]       W'[o, c, p] = W[o, (c, p)]

With a convolution in front it is one linear layer on the image (paradigm 5): taps in the padding read zeros, and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.fusions.sequential import fuse_sequential
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def linear_to_pointwise(weight: Tensor, axes: int = 2) -> Tensor:
    """The weight ``[O, C]`` of a linear layer as that of a pointwise convolution ``[O, C, 1, ...]`` (a copy).

    >>> tuple(linear_to_pointwise(torch.ones(3, 2)).shape)
    (3, 2, 1, 1)
    """
    if weight.dim() != 2:
        raise InputError(f"a linear weight is [O, C], got {tuple(weight.shape)}")
    return weight.clone().reshape(*weight.shape, *[1] * axes)


@takes_tensors
def pointwise_to_linear(weight: Tensor, groups: int = 1) -> Tensor:
    """The weight ``[O, C/groups, 1, ...]`` of a pointwise convolution as that of a linear layer ``[O, C]`` (a copy).

    >>> pointwise_to_linear(torch.tensor([[[2.0]], [[3.0]]]), groups=2).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    if weight.dim() < 2 or weight[0, 0].numel() != 1:
        raise InputError(f"a kernel of shape {tuple(weight.shape)} is not pointwise")
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"{weight.shape[0]} output channels are not divisible by {groups} groups")
    rows = weight.reshape(weight.shape[0], weight.shape[1])
    if groups == 1:
        return rows.clone()
    return torch.block_diag(*rows.chunk(groups))


@takes_tensors
def linear_to_full(weight: Tensor, size: Sequence[int]) -> Tensor:
    """The weight ``[O, C * prod(size)]`` of a linear layer behind `flatten` as a kernel ``[O, C, *size]`` (a copy).

    Args:
        weight: never modified.
        size: positions per axis of the map that is flattened.

    Raises:
        InputError: the features are no multiple of the positions.

    >>> tuple(linear_to_full(torch.ones(3, 2 * 5 * 4), (5, 4)).shape)
    (3, 2, 5, 4)
    """
    if weight.dim() != 2 or not size or weight.shape[1] % prod(size):
        raise InputError(f"a weight of shape {tuple(weight.shape)} reads no map of {tuple(size)} positions")
    return weight.clone().reshape(len(weight), -1, *size)


@takes_tensors
def full_to_linear(weight: Tensor) -> Tensor:
    """A kernel ``[O, C, *size]`` as large as what it reads as the weight of a linear layer behind `flatten` (a copy).

    Domain: no groups, no padding, a map of exactly this size.

    >>> tuple(full_to_linear(torch.ones(3, 2, 5, 4)).shape)
    (3, 40)
    """
    return weight.clone().flatten(1)


@takes_tensors
def fuse_conv_linear(
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    size: Sequence[int],
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the linear layer that a convolution, `flatten` and a linear layer are at one image size.

    Args:
        conv_weight: ``[D, C/groups, *K]``, dilation 1; never modified.
        conv_bias: ``[D]`` or None.
        linear_weight: ``[O, D * positions]``; never modified.
        linear_bias: ``[O]`` or None.
        size: positions of the image per axis.
        stride: of the convolution per axis, default 1.
        padding: zeros before and behind per axis, default 0.
        groups: of the convolution.

    Returns:
        ``[O, C * prod(size)]`` and ``[O]`` (None when both biases are None), for the flattened image.

    Raises:
        InputError: counts or shapes do not fit.

    >>> w, b = fuse_conv_linear(torch.ones(2, 3, 3, 3), None, torch.ones(4, 2 * 5 * 5), None, (5, 5), padding=(1, 1))
    >>> tuple(w.shape), w[0, :3].tolist()
    ((4, 75), [8.0, 12.0, 12.0])
    """
    axes = conv_weight.dim() - 2
    steps, pads = list(stride or [1] * axes), list(padding or [0] * axes)
    if not len(size) == len(steps) == len(pads) == axes:
        raise InputError(f"a kernel {tuple(conv_weight.shape)} at {tuple(size)}, stride {steps}, padding {pads}")
    geometry = list(zip(size, conv_weight.shape[2:], steps, pads, strict=True))
    positions = [(n + 2 * p - k) // s + 1 for n, k, s, p in geometry]
    if min(positions) < 1 or linear_weight.shape[1] != conv_weight.shape[0] * prod(positions):
        raise InputError(f"the convolution writes {conv_weight.shape[0]} channels of {positions} positions, not "
                         f"{linear_weight.shape[1]} features")  # fmt: skip
    full = linear_to_full(linear_weight, positions)
    weight, bias, _ = fuse_sequential(conv_weight, conv_bias, full, linear_bias, groups, 1, steps)
    image = weight.new_zeros(*weight.shape[:2], *size)
    inside, taps = [slice(None)] * 2, [slice(None)] * 2
    for (n, _, _, p), k in zip(geometry, weight.shape[2:], strict=True):
        count = min(k - p, n)
        inside, taps = [*inside, slice(0, count)], [*taps, slice(p, p + count)]
    image[tuple(inside)] = weight[tuple(taps)]
    return image.flatten(1), bias
