"""Paradigm 5: one convolution after another, a pointwise one and a KxK one in either order.

With first layer `f` (kernel ``W_f``, bias ``b_f``, stride ``s_f``, dilation ``d_f``) and second layer `g`::

    W[o, c, s_f d_g k_g + d_f k_f]  +=  sum_i W_g[o, i, k_g] W_f[i, c, k_f]
    W[o, c, k]  =  W_g[o, c, k] s[c]                        where `f` only scales, W_f[i, c] = s[c] (i == c)
    b[o]  =  b_g[o] + sum_{i, k_g} W_g[o, i, k_g] b_f[i]

Domain: exact at the border only where the padding belongs to the first layer, or where the first layer's output
outside its border is what the second one pads with; see `algebra.compose`, which states the condition per axis and
side. Refused elsewhere: `border-bias`, `border-read`, `border-mode`, `border-unknown`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import gcd
from typing import Any

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


def contract(second: Tensor, first: Tensor, step_second: Sequence[int], step_first: Sequence[int]) -> Tensor:
    """Kernel of `second` after `first`, on a lattice where their taps lie `step_*` positions apart.

    Args:
        second: ``[B, R, I, *K_g]``, float64: B independent blocks.
        first: ``[B, I, C, *K_f]``, float64.
        step_second: lattice steps between taps of the second kernel, per axis.
        step_first: the same for the first.

    Returns:
        ``[B, R, C, *K]`` with ``K = step_second*(K_g-1) + step_first*(K_f-1) + 1``.

    >>> contract(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), [1], [1]).flatten().tolist()
    [1.0, 2.0, 1.0]
    """
    size_g, size_f = second.shape[3:], first.shape[3:]
    size = [
        sg * (kg - 1) + sf * (kf - 1) + 1
        for kg, kf, sg, sf in zip(size_g, size_f, step_second, step_first, strict=True)
    ]
    blocks, rows, inner = second.shape[:3]
    columns = first.shape[2]
    out = second.new_zeros(blocks, rows, columns, *size)
    flat = first.reshape(blocks, inner, -1)
    for tap in product(*map(range, size_g)):
        at: tuple[Any, ...] = (..., *tap)
        part = torch.bmm(second[at], flat).reshape(blocks, rows, columns, *size_f)
        where: tuple[Any, ...] = tuple(
            slice(t * sg, t * sg + (kf - 1) * sf + 1, sf)
            for t, sg, sf, kf in zip(tap, step_second, step_first, size_f, strict=True)
        )
        where = (..., *where)
        out[where] += part
    return out


def scale_columns(second: Tensor, scale: Tensor) -> Tensor:
    """Kernel of `second` after a layer that multiplies each channel by a number.

    Args:
        second: ``[O, I, *K]``.
        scale: ``[O, I]`` or anything that broadcasts to it: what each row reads is multiplied by.

    >>> scale_columns(torch.ones(1, 2, 3), torch.tensor([[2.0, 3.0]])).tolist()
    [[[2.0, 2.0, 2.0], [3.0, 3.0, 3.0]]]
    """
    return second * scale.reshape(*scale.shape, *[1] * (second.dim() - 2))


def carry_bias(second: Tensor, bias: Tensor) -> Tensor:
    """What the first layer's bias becomes behind the second: ``sum_{i, k} W_g[o, i, k] b_f[i]``.

    Args:
        second: ``[..., R, I, *K]`` with matching leading block axes.
        bias: ``[..., I]``.

    >>> carry_bias(torch.ones(1, 4, 2, 3), torch.ones(1, 2)).tolist()
    [[6.0, 6.0, 6.0, 6.0]]
    """
    lead = bias.dim() - 1
    summed = second.flatten(lead + 2).sum(-1) if second.dim() > lead + 2 else second
    return (summed * bias.unsqueeze(-2)).sum(-1)


@takes_tensors
def fuse_sequential(
    first_weight: Tensor,
    first_bias: Tensor | None,
    second_weight: Tensor,
    second_bias: Tensor | None,
    first_groups: int = 1,
    second_groups: int = 1,
    first_stride: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None, int]:
    """Weight, bias and groups of two convolutions (dilation 1) as one.

    Args:
        first_weight: ``[D, C/first_groups, *K1]``; never modified.
        first_bias: ``[D]`` or None.
        second_weight: ``[E, D/second_groups, *K2]``; never modified.
        second_bias: ``[E]`` or None.
        first_groups: groups of the first layer.
        second_groups: groups of the second layer.
        first_stride: stride of the first layer per axis, default 1.

    Returns:
        ``(weight, bias, groups)``: the weight in the first weight's dtype, with the groups that both layers have in
        common. The padding of the result is the first layer's; the second must be unpadded (or see `algebra.compose`).

    Raises:
        InputError: the channels or axes of the two layers do not fit.

    >>> w, b, groups = fuse_sequential(torch.ones(4, 3, 1, 1), torch.ones(4), torch.ones(2, 4, 3, 3), None)
    >>> tuple(w.shape), b.tolist(), groups
    ((2, 3, 3, 3), [36.0, 36.0], 1)
    """
    if second_weight.shape[1] * second_groups != first_weight.shape[0]:
        raise InputError(
            f"the second layer reads {second_weight.shape[1] * second_groups} channels, "
            f"the first writes {first_weight.shape[0]}; check weights and groups"
        )
    if first_weight.shape[0] % first_groups or second_weight.shape[0] % second_groups:
        written, groups = (first_weight.shape[0], second_weight.shape[0]), (first_groups, second_groups)
        raise InputError(f"layers that write {written} channels do not have {groups} groups; check weights and groups")
    strides = list(first_stride or [1] * (first_weight.dim() - 2))
    if not first_weight.dim() == second_weight.dim() == len(strides) + 2:
        raise InputError(
            f"a first kernel {tuple(first_weight.shape)}, a second {tuple(second_weight.shape)} and strides {strides}: "
            "give all over equally many axes"
        )

    blocks = gcd(first_groups, second_groups)
    first, second = _blocks(first_weight, first_groups, blocks), _blocks(second_weight, second_groups, blocks)
    weight = contract(second, first, strides, [1] * len(strides)).flatten(0, 1)
    bias = second_bias
    if first_bias is not None:
        carried = carry_bias(second, first_bias.double().reshape(blocks, -1)).flatten()
        bias = carried if second_bias is None else carried + second_bias.double()
    dtype = first_weight.dtype
    return weight.to(dtype), None if bias is None else bias.to(dtype, copy=True), blocks


def _blocks(weight: Tensor, groups: int, blocks: int) -> Tensor:
    """A weight of so many groups as fewer independent blocks, ``[blocks, O/blocks, I/blocks, *K]``, float64."""
    inside = groups // blocks
    grouped = weight.double().reshape(blocks, inside, -1, *weight.shape[1:])
    out = grouped.new_zeros(blocks, inside, grouped.shape[2], inside, *weight.shape[1:])
    for i in range(inside):
        out[:, i, :, i] = grouped[:, i]
    return out.flatten(3, 4).flatten(1, 2)


@takes_tensors
def fuse_1x1_kxk(
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    pointwise_groups: int = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None, int]:
    """A pointwise convolution, then an unpadded KxK one, as one KxK convolution.

    Args and returns: as `fuse_sequential`; the first layer's kernel must be one tap.

    Raises:
        InputError: the first kernel is not pointwise, or channels do not fit.

    >>> w, b, groups = fuse_1x1_kxk(torch.ones(2, 3, 1), None, torch.ones(5, 2, 3), torch.zeros(5))
    >>> tuple(w.shape), groups
    ((5, 3, 3), 1)
    """
    if pointwise_weight[0, 0].numel() != 1:
        raise InputError(f"the first kernel {tuple(pointwise_weight.shape)} is not pointwise; use `fuse_sequential`")
    return fuse_sequential(pointwise_weight, pointwise_bias, weight, bias, pointwise_groups, groups)


@takes_tensors
def fuse_kxk_1x1(
    weight: Tensor,
    bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    groups: int = 1,
    pointwise_groups: int = 1,
) -> tuple[Tensor, Tensor | None, int]:
    """A KxK convolution (any padding and stride), then a pointwise one, as one KxK convolution.

    Args and returns: as `fuse_sequential`; the second layer's kernel must be one tap.

    Raises:
        InputError: the second kernel is not pointwise, or channels do not fit.

    >>> w, b, groups = fuse_kxk_1x1(torch.ones(4, 1, 3, 3), None, torch.ones(4, 1, 1, 1), None, 4, 4)
    >>> tuple(w.shape), groups
    ((4, 1, 3, 3), 4)
    """
    if pointwise_weight[0, 0].numel() != 1:
        raise InputError(f"the second kernel {tuple(pointwise_weight.shape)} is not pointwise; use `fuse_sequential`")
    return fuse_sequential(weight, bias, pointwise_weight, pointwise_bias, groups, pointwise_groups)
