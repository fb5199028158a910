"""Paradigm 6a: a shortcut beside one convolution is a convolution with a Dirac kernel.

::

    D[o, c, k] = 1  if c == o and k is the centre, else 0         x = D * x

In a kernel of other numbers of channels in and out the same rows hand on the first channels of each group, and the
others are zero.

Domain: a shortcut of as many channels as the branch writes; odd and even kernels (the centre is any tap, here
``K // 2``), any groups, padding ``K // 2`` before and ``K - 1 - K // 2`` after. A shortcut around several layers with
activations is paradigm 6b, `nonlinear/carried_shortcut.py`. Refused elsewhere: `channels`, `stride`, `extent`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.fusions.kernel_size import embed_taps


def dirac_kernel(
    channels: int, kernel_size: Sequence[int] = (), groups: int = 1, out_channels: int | None = None
) -> Tensor:
    """The kernel of the identity; with another number of channels out, of as many channels of each group as there are.

    Args:
        channels: number of channels in.
        kernel_size: taps per spatial axis; empty for a linear layer.
        groups: groups of the convolution that is to hold it; must divide the channels in and out.
        out_channels: number of channels out, as many as in by default. Fewer leave out the last ones of each group;
            rows beyond are zero.

    Returns:
        ``[out_channels, channels/groups, *kernel_size]`` float64.

    Raises:
        InputError: `groups` does not divide the channels.

    >>> dirac_kernel(2, (3,)).tolist()
    [[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]
    """
    out = channels if out_channels is None else out_channels
    for count in (channels, out):
        if count % groups:
            raise InputError(f"{count} channels are not divisible by {groups} groups")
    wide = channels // groups
    eye = torch.eye(out // groups, wide, dtype=torch.float64).repeat(groups, 1)
    if not kernel_size:
        return eye
    return embed_taps(
        eye.reshape(out, wide, *[1] * len(kernel_size)),
        kernel_size,
        [k // 2 for k in kernel_size],
        [1] * len(kernel_size),
    )
