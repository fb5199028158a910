"""A kernel over channels that stand side by side at several resolutions, as one kernel for each resolution.

::

    W * cat(U_1(x_1), U_2(x_2), ...)  =  sum_i  (W_i * U_i)(x_i)

for nearest upsampling `U_i` by factors of its own (all one: the identity) and `W_i`, the columns of `W` that read it.
Each term is one layer by `compose`: a transposed convolution at the resolution of `x_i`, or the convolution itself; a
pointwise one stands in front of the upsampling, which it commutes with.
What stands side by side at one resolution stays one layer. The first term holds the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from reptool.algebra.compose import compose
from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.resampling import Resampling
from reptool.fusions.resampling.upsample_conv import upsample_kernel
from reptool.refusal import Code, Refusal


@dataclass(frozen=True)
class Part:
    """Values of one resolution among those that stand side by side.

    Args:
        factors: how often each position is repeated, per axis.
        which: the places of the values among all.
        channels: the first channel of each value, and the first behind it.
    """

    factors: tuple[int, ...]
    which: tuple[int, ...]
    channels: tuple[tuple[int, int], ...]

    @property
    def is_high(self) -> bool:
        """Whether it is as large as the whole."""
        return set(self.factors) == {1}


def parts_of(factors: Sequence[tuple[int, ...]], widths: Sequence[int]) -> tuple[Part, ...]:
    """Values side by side, those of one resolution together.

    >>> [p.channels for p in parts_of([(2, 2), (1, 1), (2, 2)], [8, 4, 3])]
    [((0, 8), (12, 15)), ((8, 12),)]
    """
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    held: dict[tuple[int, ...], list[int]] = {}
    for i, own in enumerate(factors):
        held.setdefault(own, []).append(i)
    each = [(end - width, end) for end, width in zip(ends, widths, strict=True)]
    return tuple(Part(f, tuple(which), tuple(each[i] for i in which)) for f, which in held.items())


def repeating(factors: Sequence[int]) -> Kernel:
    """Nearest upsampling by these factors.

    >>> repeating((2, 3)).weight.shape
    torch.Size([1, 1, 2, 3])
    """
    ones, none = (1,) * len(factors), (0,) * len(factors)
    axes = tuple(Axis(f, 1, 1, 0, 0, Border.UNKNOWN) for f in factors)
    key = (tuple(factors), tuple(factors), none, none, ones)
    return Kernel(None, axes, upsample_kernel(1, factors), transposed=key)


def kernel_of_each(kernel: Kernel, parts: Sequence[Part]) -> list[Kernel] | Refusal:
    """One kernel for each part, whose sum is `kernel` of all side by side, behind `upsampling` where there is any.

    Args:
        kernel: over all channels, a convolution without groups; a shape gives shapes.
        parts: see `parts_of`.

    Refuses: `CHANNELS` (groups), `BORDER_UNKNOWN` (it is none with a known border), what `compose` refuses.
    """
    channels = kernel.channels
    if channels is None or channels.width < channels.in_channels:
        return Refusal(Code.CHANNELS, "groups of channels that stand side by side at several resolutions")
    if not kernel.axes or kernel.transposed is not None:
        return Refusal(Code.BORDER_UNKNOWN, "only convolutions read what stands side by side at several resolutions")
    out: list[Kernel] = []
    for part in parts:
        held = [c for first, end in part.channels for c in range(first, end)]
        columns = None if kernel.weight is None else kernel.weight[:, torch.tensor(held)]
        own = replace(kernel, channels=Channels.grouped(len(held), channels.out_channels), weight=columns)
        if out:
            own = replace(own, bias=None, biased=False, bias_terms=None)
        if not part.is_high and upsampling(kernel, part) is None:
            up = repeating(part.factors)
            made = compose(own, up if kernel.weight is not None else up.shape_only())
            if isinstance(made, Refusal):
                return made
            own = made
        out.append(own)
    return out


def upsampling(kernel: Kernel, part: Part) -> Resampling | None:
    """The upsampling that stands behind the kernel of a part; None where there is none, or it is in the kernel.

    >>> print(upsampling(Kernel(Channels.grouped(4, 4), (Axis(),) * 2), Part((2, 2), (0,), ((0, 4),))))
    Upsample(scale_factor=(2.0, 2.0), mode='nearest')
    """
    if part.is_high or not kernel.is_pointwise:
        return None
    return Resampling("Upsample", (("scale_factor", tuple(map(float, part.factors))), ("mode", "nearest")))
