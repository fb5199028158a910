"""Paradigm 7: an average pooling is a convolution with a constant kernel on every channel.

::

    F[o, c, k] = 1 / prod(K)   if c == o, else 0      (1 / divisor_override where that is given)

Domain: ``count_include_pad=True`` or no padding or a divisor override; no `ceil_mode` (it does not matter at stride 1
without padding). Refused elsewhere: `pool-geometry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from reptool.fusions.shortcut import dirac_kernel


def avg_pool_kernel(
    channels: int, kernel_size: Sequence[int], groups: int | None = None, divisor: int | None = None
) -> Tensor:
    """The kernel of an average pooling.

    Args:
        channels: number of channels.
        kernel_size: taps per spatial axis.
        groups: groups of the convolution that is to hold it, default `channels` (depthwise).
        divisor: what the sum is divided by, default the number of taps.

    Returns:
        ``[channels, channels/groups, *kernel_size]`` float64.

    Raises:
        InputError: `groups` does not divide `channels`.

    >>> avg_pool_kernel(1, (2, 2)).tolist()
    [[[[0.25, 0.25], [0.25, 0.25]]]]
    """
    pick = dirac_kernel(channels, [1] * len(kernel_size), channels if groups is None else groups)
    ones = torch.ones(1, 1, *kernel_size, dtype=torch.float64)
    return pick * ones / (divisor or prod(kernel_size))
