"""Paradigm 9: a linear layer and a pointwise convolution are one map on two layouts.

::

    Linear:  y[..., o] = sum_c W[o, c] x[..., c] + b[o]
    1x1:     y[n, o, p] = sum_c W[o, c, 0] x[n, c, p] + b[o]

Domain: exact both ways for a kernel of one tap, stride 1, no padding; groups become a block-diagonal matrix.
Refused elsewhere: `layout`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptool.errors import InputError
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
