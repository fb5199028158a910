"""A map that somebody states, against the code that it is stated for: run in float64 beside the kernel.

Fewer tests than `trials`, which has to find out everything: whoever states a kernel says that the code is affine and
treats every position alike. Whether it is *this* kernel is tested at every small size, at both signs and three
magnitudes of the input, alone and in a batch, twice; what it writes into its input, or keeps, shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.probing.response import EXACT, applied
from reptool.probing.sandbox import Probe, Stop
from reptool.refusal import Code, Refusal

MAX_SIZES = 24
MAGNITUDES = (1.0, 1e-4, 1e4)
LINEAR_SHAPES: tuple[tuple[int, ...], ...] = ((2,), (2, 3), (2, 3, 4))
"""What stands in front of the channels of a linear layer: it acts on the last axis, however many there are."""


def check_stated(
    module: nn.Module, kernel: Kernel, channels: int, sizes: Sequence[tuple[int, ...]] = ()
) -> str | Refusal:
    """How a stated kernel was tested, in words, or why it does not stand for a module.

    Args:
        module: what is run: a copy of it, in float64.
        kernel: what is stated, with its values in float64.
        channels: how many channels the module reads.
        sizes: spatial sizes at which it is tested beside the usual ones.

    Returns:
        A sentence with the number of runs and the largest error, or a refusal: `UNVERIFIED` (it computes something
        else, or runs nowhere), `HOOK`, `MUTATED` and `OPAQUE` (see `Probe`).

    >>> from reptool.algebra.kernel import Axis, Channels, Kernel
    >>> double = Kernel(Channels.grouped(3, 3, 3), (Axis(), Axis()), 2 * torch.ones(3, 1, 1, 1).double())
    >>> print(check_stated(nn.ReLU().eval(), double, 3))
    unverified: it gives other values: off by ... at (2, 3, 1, 1)
    """
    if any(a.border in (Border.CONSTANT, Border.UNKNOWN) for a in kernel.axes or ()):
        return Refusal(Code.OPAQUE, "a border that is no padding by zeros, reflection or repetition cannot be stated")
    try:
        probe, worst, compared = Probe(module), 0.0, 0
        for x in _inputs(kernel, channels, sizes):
            error = _error(probe, kernel, x)
            if error is None:
                continue
            if not error <= EXACT:
                shape = "another shape" if error == float("inf") else f"other values: off by {error:.3g}"
                return Refusal(Code.UNVERIFIED, f"it gives {shape} at {tuple(x.shape)}")
            worst, compared = max(worst, error), compared + 1
        probe.check_state()
    except Stop as stop:
        return stop.refusal
    if not compared:
        return Refusal(Code.UNVERIFIED, f"it runs in float64 at no size on {channels} channels ({probe.raised})")
    return f"tested in {compared} runs, off by at most {worst:.1e}"


def _error(probe: Probe, kernel: Kernel, x: Tensor) -> float | None:
    """The error at one input, relative to ``sum |W||x| + |b|``; None where neither gives anything."""
    given = x.clone()
    got = probe.attempt(x)
    wanted, bound = applied(kernel, given)
    if got is None:
        roomy = wanted is not None and wanted.numel() and all(map(_inside, kernel.axes or (), x.shape[2:]))
        return float("inf") if roomy else None
    if wanted is None or bound is None:
        return None if wanted is None or not got.numel() else float("inf")
    if got.shape != wanted.shape:
        return float("inf")
    return float((got - wanted).abs().max()) / (float(bound.max()) + 1e-300)


def _inside(axis: Axis, size: int) -> bool:
    """Whether the original has no reason to refuse a size."""
    return size > axis.span + abs(axis.before) + abs(axis.after)


def _inputs(kernel: Kernel, channels: int, shown: Sequence[tuple[int, ...]]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(*lead, channels) for lead in LINEAR_SHAPES]
    if kernel.axes:
        shapes = [(2, channels, *size) for size in (*_sizes(kernel.axes), *shown) if len(size) == len(kernel.axes)]
    for shape in shapes:
        yield torch.randn(shape, dtype=torch.float64, generator=generator)
    last = torch.randn((3, *shapes[-1][1:]), dtype=torch.float64, generator=generator)
    for magnitude in MAGNITUDES:
        for signed in (last, last.abs(), -last.abs()):
            yield magnitude * signed
    yield last[:1]
    yield last


def _sizes(axes: tuple[Axis, ...]) -> Iterator[tuple[int, ...]]:
    """Consecutive sizes from one pixel to beyond all taps and paddings, H != W, at every remainder of the strides."""
    most = max(a.span + abs(a.before) + abs(a.after) + 2 * a.stride for a in axes) + 1
    step = max(most // MAX_SIZES, 1)
    starts = sorted({*range(1, most + 1, step), *range(max(most - 4, 1), most + 1)})
    yield (1,) * len(axes)
    for start in starts:
        yield tuple(start + (i + start) % 3 + (i if start > 2 else 0) for i in range(len(axes)))
    for axis in range(len(axes)):
        for start in range(1, min(most, 4) + 1):
            yield tuple(start if i == axis else most + i for i in range(len(axes)))
