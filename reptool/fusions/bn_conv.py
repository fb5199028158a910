"""Paradigm 8: a batch normalization by itself is a convolution with a scaled Dirac kernel and a bias.

::

    F[o, c, k] = scale[o]  if c == o and k is the centre, else 0        b = shift

with `scale` and `shift` of `conv_bn`. Domain and refusals: those of `conv_bn` and of `shortcut`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reptool.fusions.conv_bn import bn_scale_shift, scale_rows
from reptool.fusions.shortcut import dirac_kernel
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def bn_kernel(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    kernel_size: Sequence[int] = (1, 1),
    groups: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that a batch normalization is.

    Args:
        running_mean: ``[C]``.
        running_var: ``[C]``.
        gamma: ``[C]`` or None for ones.
        beta: ``[C]`` or None for zeros.
        eps: the norm's eps.
        kernel_size: taps per spatial axis of the convolution wanted; padding ``K // 2`` before.
        groups: its groups, default C (depthwise).

    Returns:
        weight ``[C, C/groups, *kernel_size]`` and bias ``[C]``, float64.

    Raises:
        InputError: `groups` does not divide C.

    >>> import torch
    >>> w, b = bn_kernel(torch.zeros(2), torch.ones(2), torch.tensor([2.0, 3.0]), torch.ones(2), 0.0, (1,))
    >>> w.flatten().tolist(), b.tolist()
    ([2.0, 3.0], [1.0, 1.0])
    """
    scale, shift = bn_scale_shift(running_mean, running_var, gamma, beta, eps)
    channels = running_mean.shape[0]
    pick = dirac_kernel(channels, kernel_size, channels if groups is None else groups).to(scale.device)
    weight, bias = scale_rows(pick, None, scale, shift)
    assert bias is not None
    return weight, bias
