"""Impulse response: the kernel of a module whose code cannot be read, measured, or refused.

For an affine, shift-equivariant `f` with stride `s` (``t = d*k - a`` is where tap `k` sits)::

    f(x)[o, p] = b[o] + sum_{c, t} W[o, c, t] * x~[c, s*p + t]

1. the bias is the answer to nothing: ``b[o] = f(0)[o, p]`` at every `p`;
2. the size of the output is ``m(n) = floor((n + T - 1) / s) + 1``: it grows by one at every `s`-th size, which gives
   `s`, and where it grows gives `T`;
3. the weights are the answers to unit impulses: ``W[o, c, q - s*p] = f(delta_{c, q})[o, p] - b[o]``, with one position
   `q` for each remainder modulo `s`;
4. padding, dilation and size follow from the taps: ``a = -min t``, ``d = gcd(t - min t)``, ``e = T - a + d*(K - 1)``;
5. the border is that of the first mode under which `f` and the kernel agree.

All of it in float64. That `f` *is* this kernel is then tested (`probing.trials`), and every failure names the
test. Nothing here knows of graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Axis, Channels, Kernel, rewindow
from reptool.algebra.work import Work
from reptool.probing.sandbox import Probe, Stop, constants_of
from reptool.probing.trials import Trials
from reptool.refusal import Code, Refusal

NOISE = 1e-14
"""A tap below this fraction of the largest one of its channels is rounding (of a Fourier transform, say)."""
BASES = {0: ((),), 1: ((32,), (128,), (512,)), 2: ((21, 26), (49, 58), (132, 137)), 3: ((11, 13, 12), (23, 21, 26))}
MAX_ELEMENTS = 3e9
MAX_STRIDE = 64
_CHUNK = 1 << 23


@dataclass(frozen=True)
class Response:
    """What a module turned out to be.

    Args:
        kernel: the map, with its values in float64.
        work: what one run of the module executes.
        runs: how often the module was run to find out and to test it.
        sizes: how many input sizes it was tested at.
        smallest: the smallest of them.
        largest: the largest of them.
        error: largest difference from the kernel, relative to ``sum |W||x| + |b|``.
    """

    kernel: Kernel
    work: Work
    runs: int
    sizes: int
    smallest: tuple[int, ...]
    largest: tuple[int, ...]
    error: float

    def __str__(self) -> str:
        at = ""
        if self.smallest or self.largest:
            at = f" at {self.sizes} sizes from {_by(self.smallest)} to {_by(self.largest)}"
        return f"read by its impulse response, tested in {self.runs} runs{at}, off by at most {self.error:.1e}"


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def measure(
    module: nn.Module, channels: int, axes: int, sizes: Sequence[tuple[int, ...]] = (), seed: int = 0
) -> Response | Refusal:
    """The kernel a module computes, found by its impulse response and tested.

    Args:
        module: any module of one tensor ``[N, channels, *axes]``, in eval mode; a copy of it is run.
        channels: how many channels it reads.
        axes: how many spatial axes its input has (0: ``[N, channels]``).
        sizes: spatial sizes at which it is tested beside the usual ones.
        seed: of the inputs it is tested on.

    Returns:
        The response, or a refusal: `HOOK`, `MUTATED`, `OPAQUE` (it cannot be measured), `NOT_AFFINE` (the sentence
        names the test that failed).

    >>> blur = nn.Conv2d(3, 3, 3, padding=1, groups=3)
    >>> found = measure(blur.eval(), channels=3, axes=2)
    >>> found.kernel.channels.groups, torch.allclose(found.kernel.grouped_weight(), blur.weight.double())
    (3, True)
    """
    try:
        probe = Probe(module)
        generator = torch.Generator().manual_seed(seed)
        base = _base(probe, channels, axes)
        trials = Trials(probe, base, channels, generator, constants_of(module), sizes)
        trials.before()
        kernel, base = _kernel(probe, channels, base, generator)
        kernel = trials.border(kernel, base)
        trials.after(kernel, module)
        work = probe.work(torch.randn(1, channels, *base, dtype=torch.float64, generator=generator))
        tried = sorted(trials.tried, key=prod) or [()]
        return Response(kernel, work, trials.runs(), len(trials.tried), tried[0], tried[-1], trials.worst)
    except Stop as stop:
        return stop.refusal


def _base(probe: Probe, channels: int, axes: int) -> tuple[int, ...]:
    """A size the module runs at, H != W."""
    if axes not in BASES:
        raise Stop(Code.OPAQUE, f"its input has {axes} spatial axes")
    for base in BASES[axes]:
        if probe.attempt(torch.zeros(2, channels, *base, dtype=torch.float64)) is not None:
            return base
    shown = f"{channels} channels and {axes} spatial axes"
    raise Stop(Code.OPAQUE, f"it does not run in float64 on {shown} ({probe.raised})")


# --- geometry and values --------------------------------------------------------------------------------------------
def _kernel(
    probe: Probe, channels: int, base: tuple[int, ...], generator: torch.Generator
) -> tuple[Kernel, tuple[int, ...]]:
    """The kernel with its border still taken for zeros, and the size it was read at."""
    law = [_size_law(probe, channels, base, i) for i in range(len(base))]
    strides = [s for s, _ in law]
    for size in [b for b in BASES[len(base)] if prod(b) >= prod(base)]:
        if any(n < 4 * s for n, s in zip(size, strides, strict=True)):
            size = tuple(max(n, 6 * s) for n, s in zip(size, strides, strict=True))
        hull = _hull(probe, channels, size, strides, generator)
        if hull is not None:
            return _read(probe, channels, size, law, hull), size
    raise Stop(Code.NOT_AFFINE, f"one pixel changes the output everywhere, at {_by(size)} pixels (test of locality)")


def _size_law(probe: Probe, channels: int, base: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Stride and extent along one axis, from the sizes at which the output grows."""

    def out(n: int) -> int:
        size = [*base[:axis], n, *base[axis + 1 :]]
        y = probe.attempt(torch.zeros(1, channels, *size, dtype=torch.float64))
        if y is None:
            raise Stop(Code.NOT_AFFINE, f"it does not run on {_by(size)} pixels (test of the sizes)")
        return y.shape[2 + axis]

    n, last, grows = base[axis], out(base[axis]), list[int]()
    while len(grows) < 3:
        n += 1
        if n > base[axis] + 3 * MAX_STRIDE:
            raise Stop(Code.NOT_AFFINE, "the size of its output does not follow that of its input (test of the sizes)")
        now = out(n)
        if now - last not in (0, 1):
            raise Stop(Code.NOT_AFFINE, f"its output grows by {now - last} for one pixel more (test of the sizes)")
        if now > last:
            grows.append(n)
        last = now
    stride = grows[1] - grows[0]
    if grows[2] - grows[1] != stride:
        raise Stop(Code.NOT_AFFINE, "its output does not grow at every s-th size (test of the sizes)")
    return stride, stride * (last - 1) + 1 - grows[2]


def _centre(size: Sequence[int], strides: Sequence[int], phase: Sequence[int]) -> tuple[int, ...]:
    return tuple(n // (2 * s) * s + r for n, s, r in zip(size, strides, phase, strict=True))


def _phases(strides: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*map(range, strides)))


def _hull(
    probe: Probe, channels: int, size: tuple[int, ...], strides: Sequence[int], generator: torch.Generator
) -> list[tuple[int, int]] | None:
    """First and last tap per axis; None where they reach too far to be told at this size."""
    x0 = torch.zeros(1, channels, *size, dtype=torch.float64)
    nothing = probe(x0)
    low, high = [1 << 40] * len(size), [-(1 << 40)] * len(size)
    for phase in _phases(strides):
        q, x = _centre(size, strides, phase), x0.clone()
        pixel: Any = (0, slice(None), *q)
        x[pixel] = torch.randn(channels, dtype=torch.float64, generator=generator)
        y = (probe(x) - nothing)[0].abs()
        rounding = NOISE * y.amax() + 8e-16 * nothing[0].abs()
        for place in (y > rounding).any(0).nonzero().tolist():
            for i, (p, qi, s) in enumerate(zip(place, q, strides, strict=True)):
                low[i], high[i] = min(low[i], qi - s * p), max(high[i], qi - s * p)
    if low and low[0] > high[0]:
        return [(0, 0)] * len(size)
    for i, (n, s) in enumerate(zip(size, strides, strict=True)):
        centre, positions = n // (2 * s) * s, nothing.shape[2 + i]
        if high[i] > centre - 2 * s or low[i] < centre + s - s * (positions - 3):
            return None
    return list(zip(low, high, strict=True))


def _read(
    probe: Probe, channels: int, size: tuple[int, ...], law: list[tuple[int, int]], hull: list[tuple[int, int]]
) -> Kernel:
    strides = [s for s, _ in law]
    nothing = probe(torch.zeros(1, channels, *size, dtype=torch.float64))[0]
    count = nothing.shape[0]
    middle: Any = (slice(None), *(n // 2 for n in nothing.shape[1:]))
    bias = nothing[middle].clone()
    apart = (nothing.reshape(count, -1) - bias[:, None]).abs().amax(1)
    if bool((apart > 1e-13 * bias.abs()).any()):
        raise Stop(Code.NOT_AFFINE, "for zeros its output is not the same everywhere (test of the border)")
    window = [high - low + 1 for low, high in hull]
    each = channels * prod(size) + nothing.numel()
    phases = _phases(strides)
    if channels * len(phases) * each > MAX_ELEMENTS * 10 or count * channels * prod(window) > MAX_ELEMENTS / 10:
        raise Stop(Code.OPAQUE, f"reading {channels} channels with {prod(window)} taps is too much work")
    weight = torch.zeros(count, channels, *window, dtype=torch.float64)
    for phase in phases:
        q = _centre(size, strides, phase)
        for first in range(0, channels, max(_CHUNK // each, 1)):
            some = list(range(first, min(channels, first + max(_CHUNK // each, 1))))
            x = torch.zeros(len(some), channels, *size, dtype=torch.float64)
            pixels: Any = (range(len(some)), some, *q)
            x[pixels] = 1.0
            _place(weight, probe(x) - nothing, some, q, strides, hull)
    largest = weight.reshape(count, channels, -1).abs().amax(2).reshape(count, channels, *[1] * len(size))
    weight[weight.abs() <= NOISE * largest + 8e-16 * bias.abs().reshape(-1, 1, *[1] * len(size))] = 0.0
    return _shaped(weight, bias, law, [low for low, _ in hull])


def _place(
    weight: Tensor, y: Tensor, some: list[int], q: Sequence[int], strides: Sequence[int], hull: list[tuple[int, int]]
) -> None:
    """Put the answers to impulses at `q` where they belong in the window of taps."""
    taken: Any = (slice(None), slice(None))
    put: Any = (slice(None), some)
    for qi, s, (low, high), n in zip(q, strides, hull, y.shape[2:], strict=True):
        first = max(-((high - qi) // s), 0)  # the smallest p with q - s p <= high
        last = min((qi - low) // s, n - 1)  # the largest p with q - s p >= low
        taken += (slice(first, last + 1),)
        put += (slice(qi - s * last - low, qi - s * first - low + 1, s),)
    inner = y[taken]
    if hull:
        inner = inner.flip(*range(2, 2 + len(hull)))
    if all(n > 0 for n in inner.shape):
        weight[put] = inner.transpose(0, 1)


def _shaped(weight: Tensor, bias: Tensor, law: list[tuple[int, int]], low: list[int]) -> Kernel:
    """The kernel on its own lattice of taps and with its own channels."""
    axes: list[Axis] = []
    for i, (stride, extent) in enumerate(law):
        held = weight.transpose(0, 2 + i).flatten(1).ne(0).any(1).nonzero().flatten().tolist() or [-low[i]]
        step = reduce(gcd, (k - held[0] for k in held), 0) or 1
        size = (held[-1] - held[0]) // step + 1
        wanted = [min(max(held[0] + step * k, 0), weight.shape[2 + i] - 1) for k in range(size)]
        weight = weight.index_select(2 + i, torch.tensor(wanted))
        before = -(low[i] + held[0])
        axes.append(Axis(size, stride, step, before, extent - before + step * (size - 1)))
    channels = _channels(weight)
    dense = Channels.grouped(weight.shape[1], weight.shape[0])
    biased = bool(bias.ne(0).any())
    return Kernel(channels, tuple(axes), rewindow(weight, dense, channels), bias if biased else None, biased)


def _channels(weight: Tensor) -> Channels:
    """Which channels each row reads: from its first to its last that is not zero at every tap."""
    count, width = weight.shape[:2]
    read = weight.reshape(count, width, -1).ne(0).any(2).numpy()
    rows = np.arange(count)
    lo, hi = read.argmax(1), width - read[:, ::-1].argmax(1)
    nothing = ~read.any(1)
    lo[nothing] = (rows * width // count)[nothing]
    hi[nothing] = lo[nothing] + 1
    return Channels(width, lo, hi)
