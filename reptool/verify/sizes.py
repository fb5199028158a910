"""Inputs that show a wrong kernel: sizes at which every tap shows at every border, values with which every weight does.

Transposed convolutions are tried on images with a position whose taps are all kept, between others.

Per axis as many consecutive sizes are tried as the stride, from the least on at which all taps lie inside of the image
at some position and in the padding at others, with H != W. Where the original does not run on those, larger ones are.
Values are between 0.5 and 1 in size, with random signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.algebra.budget import BYTES, check_bytes, smallest_size
from reptool.algebra.kernel import Axis, Kernel
from reptool.ir.ops import Affine, Op
from reptool.plan.forms import Form
from reptool.plan.resolutions.joined import Joined

MAX_SIZES = 4
BATCH = 2
SMALL = 2**21
"""Multiplications up to which two images are run instead of one."""


def sizes_of(kernel: Kernel, reference: list[Op], count: int = MAX_SIZES) -> Iterator[list[tuple[int, ...]]]:
    """Input sizes that show every tap at every border, the smallest first: see the module's text.

    Args:
        kernel: of the region.
        reference: the operations it replaces.
        count: the most sizes to try.
    """
    axes = kernel.axes or ()
    if kernel.transposed is not None or not axes:
        least = [3] * len(axes) if kernel.transposed is None else _all_written(kernel.transposed)
        yield [tuple(n + i for i, n in enumerate(least))]
        return
    count = min(count, max(axis.stride for axis in axes))
    for base in ([_least(a) for a in axes], [_roomy(a, reference, i, len(axes)) for i, a in enumerate(axes)]):
        sizes = [
            tuple(b + i * a.stride + k for i, (a, b) in enumerate(zip(axes, base, strict=True))) for k in range(count)
        ]
        yield [s for s in sizes if check_bytes(kernel, s, 1) <= BYTES] or [
            tuple(n + i for i, n in enumerate(smallest_size(axes)))
        ]


def resampled_sizes(form: Form) -> Iterator[list[tuple[int, ...]]]:
    """Sizes for a pointwise layer with resampling around it: small ones, and larger ones where these do not run."""
    axes = len(form.shape.axes or ())
    for least in (5, 12, 40, 160):
        yield [tuple(least + 2 * i + k for i in range(axes)) for k in (0, 1)]


def _all_written(transposed: tuple[Any, ...]) -> list[int]:
    """Per axis the least size, from three on, with a position whose taps are all kept, and others beside it."""
    if len(transposed) != 5:
        return [3] * len(transposed[0])
    out = []
    for _, stride, padding, extra, _ in zip(*transposed, strict=True):
        lost = max(padding - extra, 0)  # behind the last position that is written
        out.append(max(3, -(-padding // stride) + -(-lost // stride) + 2))
    return out


def _least(axis: Axis) -> int:
    """The least size with all taps inside of the image at one position, and another position beside it."""
    first = -(-max(axis.before, 0) // axis.stride)  # the first position all of whose taps lie behind the border
    inside = axis.stride * first - axis.before + axis.span + 1
    return max(inside, axis.stride * max(first, 1) + 1 - axis.extent)


def _roomy(axis: Axis, reference: list[Op], i: int, count: int) -> int:
    """A size that is larger by all that the original pads and crops."""
    pads = abs(axis.before) + abs(axis.after)  # a crop behind a stride is as many times as wide
    own = [op.shape.axes for op in reference if isinstance(op, Affine) and op.shape.axes]
    pads = max(pads, sum(abs(a[i].before) + abs(a[i].after) for a in own if len(a) == count))
    return -(-(axis.span + 1 + max(pads, 1)) // axis.stride) * axis.stride + axis.stride


def of_one_position(kernel: Kernel) -> tuple[int, ...]:
    """The least size with a result: what is flattened behind it may have to be of one position."""
    return tuple(max(1 - a.extent, 1) for a in kernel.axes or ()) if kernel.transposed is None else ()


def made_up(kernel: Kernel, size: tuple[int, ...], rank: int | None, generator: torch.Generator) -> Tensor:
    """An input of a kernel; `rank` is that of what a linear one reads, where it is known."""
    channels = kernel.in_channels
    assert channels is not None
    if kernel.axes == ():
        shape = [BATCH, *range(3, 3 + (rank or 2) - 2), channels]
    else:
        assert kernel.weight is not None
        shape = [BATCH if kernel.weight.numel() * prod(size) <= SMALL else 1, channels, *size]
    return numbers_of(shape, generator)


def numbers_of(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers with which every weight shows."""
    x = torch.rand(list(shape), dtype=torch.float64, generator=generator)
    return torch.where(x < 0.5, x - 1, x)  # -1 to -0.5, and 0.5 to 1


def several_made_up(joined: Joined, size: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Values that upsampled have `size` positions, times the factors of all.

    Args:
        joined: what stands side by side.
        size: of the smallest.
        generator: of the numbers.
    """
    each = [lcm(*along) for along in zip(*joined.factors, strict=True)]
    made: dict[fx.Node, Tensor] = {}
    for part in joined.parts:
        own = [n * e // f for n, e, f in zip(size, each, part.factors, strict=True)]
        for i, (first, end) in zip(part.which, part.channels, strict=True):
            made.setdefault(joined.values[i], numbers_of([BATCH, end - first, *own], generator))
    return tuple(made[v] for v in joined.values)


def upsampled(joined: Joined, node: fx.Node, x: Tensor) -> Tensor:
    """What an upsampling that is told its size gives where that is as many times as large as in the example."""
    factors = joined.factors[joined.ups.index(node)]
    size = [n * f for n, f in zip(x.shape[2:], factors, strict=True)]
    mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
    return nn.functional.interpolate(x, size=size, mode=str(mode))
