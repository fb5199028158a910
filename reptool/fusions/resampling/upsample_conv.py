"""Nearest upsampling and a convolution as one transposed convolution at the low resolution.

Nearest upsampling by `s` is a transposed convolution of stride `s` with `s` taps of one for each channel by itself.
A transposed convolution `f` writes from position `p` of its input to ``s p + d_f j - a_f`` of its output, and a
convolution `g` behind it reads positions ``t q + d_g k - a_g``. So output `q` reads input `p` with weight

::

    W  =  sum W_g[k] W_f[j]    over all j, k with    t q + d_g k - a_g  =  s p + d_f j - a_f

which depends on ``t q - s p`` alone. Where `t` divides `s` this is a transposed convolution of stride ``s / t``, where
`s` divides `t` a convolution of stride ``t / s``; taps at which the equation has no solution are left out. For t = 1,
nearest upsampling (a_f = 0) and a K x K kernel of dilation d and padding a: ``s + d (K - 1)`` taps of padding
``d (K - 1) - a``, so 16 multiplications for 36 where K = 3 and s = 2.

Domain: exact at the border where `g` pads zeros and `f` neither crops what it writes nor has a bias, or where `g` pads
nothing (crops are no padding). Refused elsewhere: `border-read`, `border-bias`, `border-mode`; `stride` where neither
of `s` and `t` divides the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.fusions.sequential import contract
from reptool.models.tensor_arguments import takes_tensors

Along = tuple[int, int, int, int, int]
"""Kernel size, stride, padding, output padding and dilation of a transposed convolution along one axis."""


@dataclass(frozen=True)
class Behind:
    """A convolution behind a transposed one along one axis, as one layer.

    Args:
        steps: between the taps of the convolution and those of the transposed one on the lattice of their sums.
        first: the first tap on that lattice which is one of the layer's.
        every: how many taps of the lattice lie from one of the layer's to the next.
        size: taps of the layer.
        dilation: of the layer.
        stride: of the layer.
        before: padding in front.
        end: transposed: positions that the layer writes beyond ``stride * (n - 1)``; else the extent of its axis.
        transposed: whether it is a transposed convolution.
    """

    steps: tuple[int, int]
    first: int
    every: int
    size: int
    dilation: int
    stride: int
    before: int
    end: int
    transposed: bool


def conv_behind_transposed(conv: tuple[int, int, int, int, int], first: Along, transposed: bool) -> Behind | None:
    """Geometry of a convolution behind a transposed one along one axis; None where it is none of this sort.

    Args:
        conv: kernel size, stride, dilation, padding before and behind of the convolution.
        first: the transposed convolution.
        transposed: whether a transposed convolution is asked for, or a convolution.

    >>> conv_behind_transposed((3, 1, 1, 1, 1), (2, 2, 0, 0, 1), True)
    Behind(steps=(1, 1), first=0, every=1, size=4, dilation=1, stride=2, before=1, end=2, transposed=True)
    """
    k, t, d, before, after = conv
    size, s, padding, extra, apart = first
    if (s % t if transposed else t % s) or t < 1:
        return None
    near, far = d * (k - 1), apart * (size - 1)
    steps = [step for step, count in ((d, k), (apart, size)) if count > 1]
    step = gcd(*steps) if steps else 1
    unit = t if transposed else s
    start = before - padding - near if transposed else padding - before - far
    every = unit // gcd(step, unit)
    taps = range((near + far) // step + 1)
    held = [i for i in taps if (start + i * step) % unit == 0]
    if not held:
        return None  # no output reads anything
    written = far - 2 * padding + extra + 1 + before + after - near
    return Behind(
        (d // step if k > 1 else 1, apart // step if size > 1 else 1), held[0], every, len(held),
        every * step // unit if len(held) > 1 else 1, s // t if transposed else t // s,
        -(start + held[0] * step) // unit, (written - 1) // unit + transposed, transposed,
    )  # fmt: skip


def border_behind_transposed(conv: tuple[int, int, int, int, int], first: Along, biased: bool) -> str:
    """Why a convolution that pads zeros is none behind a transposed one: `read`, `bias`, or '' where it is one.

    Args:
        conv: kernel size, stride, dilation, padding before and behind of the convolution.
        first: the transposed convolution.
        biased: whether that has a bias.

    >>> border_behind_transposed((3, 1, 1, 1, 1), (4, 2, 1, 0, 1), False)
    'read'
    """
    _, _, _, before, after = conv
    _, _, padding, extra, _ = first
    if (before > 0 and padding > 0) or (after > 0 and padding > extra):
        return "read"
    return "bias" if biased and (before > 0 or after > 0) else ""


def join(second: Tensor, first: Tensor, behind: Sequence[Behind]) -> Tensor:
    """Kernel of a convolution behind a transposed one: the taps of the layer among all sums of taps.

    Args:
        second: ``[B, R, I, *K]``, float64: the convolution, B independent blocks of it.
        first: ``[B, I, C, *F]``, float64: the transposed convolution, rows are outputs.
        behind: geometry along each axis.

    Returns:
        ``[B, R, C, *size]``.

    >>> one = conv_behind_transposed((2, 2, 1, 0, 0), (2, 2, 0, 0, 1), False)
    >>> join(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2), [one]).flatten().tolist()
    [2.0]
    """
    turned = [3 + i for i, b in enumerate(behind) if b.transposed]
    other = [3 + i for i, b in enumerate(behind) if not b.transposed]
    steps = [b.steps for b in behind]
    whole = contract(second.flip(turned), first.flip(other), [s for s, _ in steps], [s for _, s in steps])
    where: tuple[Any, ...] = tuple(slice(b.first, b.first + (b.size - 1) * b.every + 1, b.every) for b in behind)
    where = (..., *where)
    return whole[where]


def upsample_kernel(channels: int, factors: Sequence[int]) -> Tensor:
    """The kernel of nearest upsampling as a transposed convolution of groups `channels`, with strides `factors`.

    Args:
        channels: number of channels.
        factors: how often each position is repeated, per axis.

    Returns:
        ``[channels, 1, *factors]`` float64, all ones.

    Raises:
        InputError: a factor is less than one.

    >>> upsample_kernel(1, (2, 2)).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    if any(f < 1 for f in factors):
        raise InputError(f"upsampling by {tuple(factors)}: give factors of one and more")
    return torch.ones(channels, 1, *factors, dtype=torch.float64)


@takes_tensors
def fuse_upsample_conv(
    weight: Tensor, factors: Sequence[int], padding: Sequence[int], groups: int = 1
) -> tuple[Tensor, tuple[int, ...]]:
    """Nearest upsampling and a convolution of stride 1 and dilation 1 behind it, as one transposed convolution.

    Its stride is `factors`, its bias and groups are those of the convolution.

    Args:
        weight: ``[O, C/groups, *K]`` of the convolution; never modified.
        factors: how often each position is repeated, per axis.
        padding: zeros on both sides of the convolution, per axis; at most ``K - 1``.
        groups: groups of the convolution.

    Returns:
        ``(weight, padding)`` of the transposed convolution: ``[C, O/groups, *(K + factors - 1)]`` in the weight's
        dtype, and the padding per axis.

    Raises:
        InputError: counts do not fit, a factor is less than one, or a padding is more than ``K - 1``.

    >>> import torch.nn.functional as F
    >>> x, w = torch.rand(1, 4, 5, 7).double(), torch.rand(6, 4, 3, 3).double()
    >>> wanted = F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1)
    >>> weight, padding = fuse_upsample_conv(w, (2, 2), (1, 1))
    >>> weight.shape, torch.allclose(F.conv_transpose2d(x, weight, stride=2, padding=padding), wanted)
    (torch.Size([4, 6, 4, 4]), True)
    """
    size = weight.shape[2:]
    if not len(size) == len(factors) == len(padding) or weight.shape[0] % groups:
        raise InputError(
            f"a kernel {tuple(weight.shape)} of {groups} groups, factors {tuple(factors)}, padding {tuple(padding)}: "
            "give one of each per axis, and groups that divide the outputs"
        )
    if any(f < 1 for f in factors) or any(not 0 <= p < k for p, k in zip(padding, size, strict=True)):
        raise InputError(
            f"factors {tuple(factors)} and padding {tuple(padding)} for a kernel {tuple(size)}: give factors of one "
            "and more, and paddings from zero to one less than the kernel"
        )
    behind = [
        conv_behind_transposed((k, 1, 1, p, p), (f, f, 0, 0, 1), True)
        for k, p, f in zip(size, padding, factors, strict=True)
    ]
    known = [b for b in behind if b is not None]
    each = weight.double().reshape(-1, 1, 1, *size)
    out = join(each, upsample_kernel(1, factors).expand(len(each), 1, 1, *factors), known)
    outputs, wide = weight.shape[0] // groups, weight.shape[1]
    taps = out.shape[3:]
    rows = out.reshape(groups, outputs, wide, *taps).transpose(1, 2).reshape(-1, outputs, *taps)
    return rows.to(weight.dtype), tuple(b.before for b in known)
