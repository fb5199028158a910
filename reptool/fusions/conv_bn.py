"""Paradigm 1: a convolution (or linear layer) and the batch normalization behind it.

With ``scale = gamma / sqrt(running_var + eps)`` and ``shift = beta - running_mean * scale``::

    BN(W * x + b)  =  (scale W) * x + (scale b + shift)

Domain: normalization with running statistics; any rank, groups, stride, dilation and padding, since the
normalization acts on the convolution's output. Refused elsewhere: batch statistics (`training-norm`,
`no-statistics`), a norm behind a linear layer that normalizes another axis (`layout`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def bn_scale_shift(
    running_mean: Tensor, running_var: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Per-channel scale and shift of a batch normalization with running statistics, in float64.

    Args:
        running_mean: ``[C]``.
        running_var: ``[C]``.
        gamma: ``[C]`` or None for ones.
        beta: ``[C]`` or None for zeros.
        eps: added to the variance.

    Returns:
        scale ``[C]`` and shift ``[C]``, float64.

    >>> scale, shift = bn_scale_shift(torch.ones(2), torch.full((2,), 4.0), None, None, 0.0)
    >>> scale.tolist(), shift.tolist()
    ([0.5, 0.5], [-0.5, -0.5])
    """
    scale = torch.rsqrt(running_var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -running_mean.double() * scale
    return scale, shift if beta is None else shift + beta.double()


@takes_tensors
def scale_rows(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Apply ``y -> scale*y + shift`` per output channel to ``y = weight * x + bias``.

    Args:
        weight: ``[O, ...]``.
        bias: ``[O]`` or None for zeros.
        scale: ``[O]``.
        shift: ``[O]`` or None for zeros.

    Returns:
        The weight and bias of the composition; the bias stays None when both were None.

    >>> w, b = scale_rows(torch.ones(1, 1, 1, 1), None, torch.tensor([2.0]), torch.tensor([3.0]))
    >>> w.item(), b.item()
    (2.0, 3.0)
    """
    scaled = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    if bias is None:
        return scaled, None if shift is None else shift.clone()
    return scaled, bias * scale if shift is None else bias * scale + shift


@takes_tensors
def fuse_conv_bn(
    weight: Tensor,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution or linear layer with the batch normalization behind it folded in.

    Args:
        weight: ``[O, C/groups, *K]`` or ``[O, C]``, any floating dtype; never modified.
        bias: ``[O]`` or None.
        running_mean: ``[O]``.
        running_var: ``[O]``.
        gamma: ``[O]`` or None.
        beta: ``[O]`` or None.
        eps: the norm's eps.

    Returns:
        Weight and bias in `weight`'s dtype; computed in float64 and cast once.

    Raises:
        InputError: the statistics are not ``[O]``.

    >>> import torch.nn as nn
    >>> conv, bn, x = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval(), torch.randn(1, 3, 5, 5)
    >>> w, b = fuse_conv_bn(conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias, bn.eps)
    >>> torch.allclose(nn.functional.conv2d(x, w, b), bn(conv(x)), atol=1e-5)
    True
    """
    if running_mean.shape != weight.shape[:1] or running_var.shape != weight.shape[:1]:
        raise InputError(
            f"running statistics of shape {tuple(running_mean.shape)} and {tuple(running_var.shape)} do not fit "
            f"{weight.shape[0]} output channels; pass the norm that follows this layer"
        )
    scale, shift = bn_scale_shift(running_mean, running_var, gamma, beta, eps)
    fused, fused_bias = scale_rows(weight.double(), None if bias is None else bias.double(), scale, shift)
    assert fused_bias is not None
    return fused.to(weight.dtype), fused_bias.to(weight.dtype)
