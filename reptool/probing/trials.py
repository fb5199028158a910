"""Trials: every test that a module read by its impulse response has to pass, each with a name.

before the kernel is known
    repeat      the same input gives the same output, at the start and after all other runs
    batch       a sample's output does not depend on the others, nor on how many there are
    affinity    ``f(r x + (1 - r) z) = r f(x) + (1 - r) f(z)`` at large and small magnitudes and for both signs
against the kernel, each output within `EXACT` of ``sum |W||x| + |b|``
    shift       inside the border
    border      everywhere, under zeros or else reflect, replicate or circular
    sizes       consecutive sizes from 1 to beyond the taps, large ones, and those around every number the module's
                code or attributes hold (a tile, a threshold on the size); where the kernel has no output, none is given
    magnitude   one decade after the other from 1e-38 to 1e38: positive, negative, mixed, a single pixel, and the
                numbers of the code themselves; NaN and infinity stay what they are
    layout      channels-last, transposed and expanded inputs give the same or raise
    gradient    with gradients recorded as without
    dtype       in the module's own dtype, within its rounding
    state       after all of it the module holds what it held

What no test can see is a behaviour that sets in at a size never tried and hinted at by no number of the code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.probing.response import EXACT, applied, with_border
from reptool.probing.sandbox import Probe, Stop
from reptool.refusal import Code

LARGE = {1: (64, 127, 128, 129, 257, 1030), 2: (64, 65, 127, 129, 257), 3: (32, 33, 65)}
LIMIT = {1: 20_000, 2: 2_100, 3: 300}
DECADES = range(-38, 39)
LOOSE = 1e-9
MAX_NUMBERS = 60
_MODES = (Border.ZEROS, Border.REFLECT, Border.REPLICATE, Border.CIRCULAR)


class Trials:
    """The tests of one module.

    Args:
        probe: the module in float64.
        base: a size it runs at.
        channels: how many channels it reads.
        generator: of the inputs.
        numbers: those its code and attributes hold.
        shown: sizes the caller showed.
    """

    def __init__(
        self,
        probe: Probe,
        base: tuple[int, ...],
        channels: int,
        generator: torch.Generator,
        numbers: set[float],
        shown: Sequence[tuple[int, ...]],
    ) -> None:
        self.probe, self.base, self.channels, self.generator = probe, base, channels, generator
        self.numbers = sorted(numbers)[-MAX_NUMBERS:] if len(numbers) > MAX_NUMBERS else sorted(numbers)
        self.shown = list(shown)
        self.tried: set[tuple[int, ...]] = set()
        self.worst, self.others = 0.0, 0

    def runs(self) -> int:
        """How often the module was run."""
        return self.probe.runs + self.others

    def _x(self, *lead: int, size: Sequence[int] | None = None) -> Tensor:
        shape = (*(lead or (2,)), self.channels, *(self.base if size is None else size))
        return torch.randn(shape, dtype=torch.float64, generator=self.generator)

    # --- before the kernel is known
    def before(self) -> None:
        """Tests that need no kernel."""
        self.first = self._x()
        self.answer = self.probe(self.first).clone()
        self._repeat()
        self._batch()
        self._affinity()

    def _repeat(self) -> None:
        other = self.probe(self._x())
        kept = other.clone()
        again = self.probe(self.first)
        if not _close(again, self.answer, 1e-13) or not torch.equal(other, kept):
            raise Stop(Code.NOT_AFFINE, "the same input gives another output the next time (test of repetition)")

    def _batch(self) -> None:
        counts = {1, 3, 8, 17, *(n for c in self._integers(130) for n in (c, c + 1))}
        x = self._x(max(counts))
        alone = torch.cat([self.probe(x[i : i + 1]) for i in range(min(len(x), 8))])
        for n in sorted(counts):
            y = self.probe(x[:n])
            if not _close(y[:8], alone[:n], 1e-11):
                raise Stop(Code.NOT_AFFINE, f"a sample's output depends on the {n} in its batch (test of the batch)")

    def _integers(self, limit: int) -> list[int]:
        return sorted({int(c) for c in self.numbers if 2 <= c <= limit and c == int(c)})

    def _affinity(self) -> None:
        for scale in (1.0, *(10.0**k for k in range(-36, 37, 3))):
            for sign in (0, 1, -1):
                x, z = (_signed(self._x(1), sign) * scale for _ in range(2))
                r = float(torch.empty(1, dtype=torch.float64).uniform_(0.1, 0.9, generator=self.generator))
                if sign == 0:
                    r = 3.0 * r - 1.0
                fx, fz, both = self.probe(x), self.probe(z), self.probe(r * x + (1 - r) * z)
                bound = 2 * max(float(fx.abs().amax()), float(fz.abs().amax())) + 1e-300
                off = float((both - (r * fx + (1 - r) * fz)).abs().amax()) / bound
                if not off <= LOOSE:
                    raise Stop(
                        Code.NOT_AFFINE,
                        f"f(rx + (1-r)z) is off by {off:.1e} at inputs of magnitude {scale:.0e} (test of affinity)",
                    )

    # --- against the kernel
    def border(self, kernel: Kernel, base: tuple[int, ...]) -> Kernel:
        """The kernel with its border mode."""
        x = self._x(size=base)
        wanted, bound = applied(kernel, x)
        got = self.probe(x)
        if wanted is None or bound is None or wanted.shape != got.shape:
            raise Stop(Code.NOT_AFFINE, f"its output is {tuple(got.shape)} (test of the sizes)")
        assert kernel.axes is not None
        inner = tuple(_inside(a, n) for a, n in zip(kernel.axes, base, strict=True))
        part = (slice(None), slice(None), *inner)
        off = _off(got[part], wanted[part], bound)
        if not off <= EXACT:
            raise Stop(Code.NOT_AFFINE, f"shifted inputs are off by {off:.1e} (test of shift-equivariance)")
        for mode in _MODES:
            made = with_border(kernel, mode)
            wanted, bound = applied(made, x)
            if wanted is not None and bound is not None and _off(got, wanted, bound) <= EXACT:
                return made
        raise Stop(Code.NOT_AFFINE, "its border is no padding by zeros, reflection or repetition (test of the border)")

    def after(self, kernel: Kernel, module: nn.Module) -> None:
        """All tests against a kernel whose border is known."""
        for size in self._sizes(kernel):
            self._at(kernel, size)
        small = self._small(kernel)
        for what, x in self._magnitudes(small):
            self._agree(kernel, x, f"at {what} (test of magnitude)")
        self._not_finite(kernel, small)
        self._layouts(kernel)
        self._gradient()
        self._own_dtype(kernel, module, small)
        self._repeat()
        self.probe.check_state()

    def _agree(self, kernel: Kernel, x: Tensor, where: str) -> None:
        got = self.probe(x)
        wanted, bound = applied(kernel, x)
        if wanted is None or bound is None:
            return
        off = _off(got, wanted, bound)
        if not off <= EXACT:
            raise Stop(Code.NOT_AFFINE, f"it is off by {off:.1e} of what its impulse response says {where}")
        self.worst = max(self.worst, off)

    def _at(self, kernel: Kernel, size: tuple[int, ...]) -> None:
        x = self._x(2 if prod(size) < 10_000 else 1, size=size)
        got = self.probe.attempt(x)
        wanted, bound = applied(kernel, x)
        shown = "x".join(map(str, size))
        assert kernel.axes is not None
        if got is None:
            if wanted is None or not wanted.numel():
                return
            reach = [a.span + abs(a.before) + abs(a.after) for a in kernel.axes]
            if all(n > r for n, r in zip(size, reach, strict=True)):
                raise Stop(Code.NOT_AFFINE, f"it does not run on {shown} pixels (test of the sizes)")
            return
        self.tried.add(size)
        if wanted is None:
            return  # no layer runs at this size either
        if wanted.numel() == 0 or bound is None:
            if got.numel():
                raise Stop(Code.NOT_AFFINE, f"it gives {tuple(got.shape)} for {shown} pixels (test of the sizes)")
            return
        if got.shape != wanted.shape:
            raise Stop(Code.NOT_AFFINE, f"it gives {tuple(got.shape)} for {shown} pixels (test of the sizes)")
        off = _off(got, wanted, bound)
        if not off <= EXACT:
            raise Stop(Code.NOT_AFFINE, f"it is off by {off:.1e} on {shown} pixels (test of the sizes)")
        self.worst = max(self.worst, off)

    def _small(self, kernel: Kernel) -> tuple[int, ...]:
        """The smallest size at which nothing is cut off."""
        assert kernel.axes is not None
        return tuple(
            a.span + max(a.before, 0) + max(a.after, 0) + 2 + a.stride + i - min(a.before, 0) - min(a.after, 0)
            for i, a in enumerate(kernel.axes)
        )

    def _sizes(self, kernel: Kernel) -> Iterator[tuple[int, ...]]:
        small = self._small(kernel)
        axes = kernel.axes or ()
        seen: set[tuple[int, ...]] = set()
        lists: list[list[int]] = []
        for axis, least, base in zip(axes, small, self.base, strict=True):
            hints = {m for c in self._integers(LIMIT[len(axes)]) for m in (c - 1, c, c + 1, 2 * c + 1)}
            near = {*range(1, least + axis.stride + 2), *range(base, base + axis.stride + 1)}
            lists.append(sorted(n for n in near | hints | set(LARGE[len(axes)]) if 0 < n <= LIMIT[len(axes)]))
        for i, sizes in enumerate(lists):
            for k, n in enumerate(sizes):
                size = tuple(n if j == i else small[j] + (k + j) % 5 for j in range(len(axes)))
                if size not in seen:
                    seen.add(size)
                    yield size
        least_of = [[n for n in sizes if n <= s + 2] for sizes, s in zip(lists, small, strict=True)]
        for k in range(max(map(len, least_of), default=0)):  # small along all axes at once
            for shift in range(3):
                yield tuple(ns[(k + shift * j) % len(ns)] for j, ns in enumerate(least_of))
        if len(axes) > 1:
            yield tuple(LARGE[len(axes)][-1 - i] // 2 + 3 * i for i in range(len(axes)))
        yield from (tuple(s) for s in self.shown if len(s) == len(axes) and s and prod(s) * self.channels < 1e8)
        if not axes:
            yield ()

    # --- values
    def _magnitudes(self, size: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
        for k in DECADES:
            for sign, word in ((0, "mixed"), (1, "positive"), (-1, "negative")):
                yield f"{word} inputs of magnitude 1e{k:+03d}", _signed(self._x(2, size=size), sign) * 10.0**k
            one = torch.zeros_like(self._x(2, size=size))
            flat = one.flatten(1)
            for i in range(2):
                flat[i, int(torch.randint(flat.shape[1], (), generator=self.generator))] = (-1.0) ** i * 10.0**k
            yield f"a single pixel of 1e{k:+03d}", flat.reshape(one.shape)
        x = self._x(2, size=size)
        yield "mixed magnitudes", x * 10.0 ** (torch.rand(x.shape, generator=self.generator, dtype=x.dtype) * 6 - 3)
        for c in (1.0, 2.0, 255.0, *self.numbers):
            for side in (1.0, -1.0):
                yield f"the number {side * c:g}", torch.full_like(x, side * c)
                yield f"numbers around {side * c:g}", (1 + 1e-3 * x) * (side * c)
        yield "whole numbers", (4 * x).round()
        yield "increasing numbers", x.flatten(1).sort(1).values.reshape(x.shape)

    def _not_finite(self, kernel: Kernel, size: tuple[int, ...]) -> None:
        """NaN and infinity come out wherever a layer would give them."""
        x = self._x(1, size=size)
        for bad in (float("nan"), float("inf"), -float("inf")):
            filled = torch.full_like(x, bad)
            got = self.probe.attempt(filled)
            wanted, _ = applied(kernel, filled)
            if got is None or wanted is None or bool((got.isfinite() & ~wanted.isfinite()).any()):
                raise Stop(Code.NOT_AFFINE, f"it makes a number of {bad} (test of magnitude)")

    def _layouts(self, kernel: Kernel) -> None:
        x = self.first
        made = [x[:1].expand(3, *x.shape[1:]), x.transpose(1, -1).contiguous().transpose(1, -1)]
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        wide[..., 1::2] = x
        made.append(wide[..., 1::2])
        if x.dim() == 4:
            made.append(x.contiguous(memory_format=torch.channels_last))
        for value in made:
            got = self.probe.attempt(value)
            wanted, bound = applied(kernel, value.contiguous())
            if got is not None and wanted is not None and bound is not None and not _off(got, wanted, bound) <= EXACT:
                raise Stop(Code.NOT_AFFINE, "another memory layout of the input changes its output (test of layout)")

    def _gradient(self) -> None:
        x = self.first.clone().requires_grad_()
        self.others += 1
        try:
            with torch.enable_grad():
                y = self.probe.module(x)
        except Exception:  # what raises is not silently different
            return
        if not isinstance(y, Tensor) or not _close(y.detach(), self.answer, 1e-13):
            raise Stop(Code.NOT_AFFINE, "its output is another when gradients are recorded (test of the gradient)")

    def _own_dtype(self, kernel: Kernel, module: nn.Module, size: tuple[int, ...]) -> None:
        probe = Probe(module, wide=False)
        if probe.dtype is torch.float64:
            return
        eps = torch.finfo(probe.dtype).eps
        top = int(torch.tensor(torch.finfo(probe.dtype).max).log10()) - 4
        for k in range(-top, top + 1, 2):
            for sign in (0, 1, -1):
                x = (_signed(self._x(2, size=size), sign) * 10.0**k).to(probe.dtype)
                try:
                    got = probe(x)
                except Stop:
                    raise
                except Exception:  # an operation that this dtype lacks on the CPU
                    return
                wanted, bound = applied(kernel, x.double())
                if wanted is None or bound is None:
                    continue
                floor = torch.finfo(probe.dtype).smallest_normal * 1e3
                off = _off(got.double(), wanted, bound + floor)
                if not off <= 256 * eps * max(1.0, bound.shape[1] ** 0.5):
                    raise Stop(
                        Code.NOT_AFFINE,
                        f"in {probe.dtype} it is off by {off:.1e} at magnitude 1e{k:+03d} (test of dtype)",
                    )
        self.others += probe.runs


def _inside(axis: Axis, size: int) -> slice:
    """The positions of the output that read nothing from beyond the edges."""
    first = max(-(-axis.before // axis.stride), 0)
    return slice(first, max((size - 1 - axis.span + axis.before) // axis.stride + 1, first))


def _signed(x: Tensor, sign: int) -> Tensor:
    return x if sign == 0 else x.abs() * sign


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().amax() <= tolerance * b.abs().amax() + 1e-300)


def _off(got: Tensor, wanted: Tensor, bound: Tensor) -> float:
    """Largest error relative to the largest ``sum |W||x| + |b|`` of the same sample and channel."""
    if got.shape != wanted.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    scale = bound.flatten(2).amax(2) if bound.dim() > 2 else bound
    error = (got - wanted).abs()
    error = error.flatten(2).amax(2) if error.dim() > 2 else error
    return float((error / (scale + 1e-290)).amax())
