"""Parallel transposed convolutions of different kernels, brought onto one lattice, and convolutions behind one.

Tap `k` of a transposed convolution writes from position `p` of its input to position ``s*p + d*k - a`` of its output,
which has ``s*(n - 1) + E`` positions, ``E = d*(K - 1) - 2*a + e + 1`` with output padding `e`. Where strides and `E`
are equal, so are the sizes of all outputs, and on the common lattice of their taps (`fusions.kernel_size`) each kernel
is itself with zeros between and around its taps. The output padding is what is left of `E`; since torch takes
``0 <= e < max(s, d)`` alone, zeros are put in front of the taps or behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.fusions.kernel_size import common_lattice, embed_on
from reptool.fusions.resampling.upsample_conv import (
    Along,
    Behind,
    border_behind_transposed,
    conv_behind_transposed,
    join,
)
from reptool.refusal import Code, Refusal


def on_one_lattice(kernels: Sequence[Kernel], what: str) -> list[Kernel] | Refusal:
    """The same transposed convolutions with one geometry.

    Refuses: `BORDER_UNKNOWN` (a deformable convolution, or one that is not transposed), `STRIDE`, `EXTENT`.
    """
    keys = [k.transposed for k in kernels]
    if all(key == keys[0] for key in keys):
        return list(kernels)
    if any(key is None or len(key) != 5 for key in keys):
        return Refusal(Code.BORDER_UNKNOWN, f"convolutions, transposed and not, in one {what}")
    merged: list[Along] = []
    each = [list(zip(*key, strict=True)) for key in keys if key is not None]
    for along in zip(*each, strict=True):
        axis = _merged(along, what)
        if isinstance(axis, Refusal):
            return axis
        merged.append(axis)
    size, *_ = key = tuple(zip(*merged, strict=True))
    axes = tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in size)
    lattice = [_taps(a) for a in merged]

    def embedded(kernel: Kernel, own: Sequence[Along]) -> Kernel:
        weight = None if kernel.weight is None else embed_on(kernel.weight, [_taps(a) for a in own], lattice)
        return replace(kernel, axes=axes, weight=weight, transposed=key)

    return [embedded(k, own) for k, own in zip(kernels, each, strict=True)]


def _merged(along: Sequence[Along], what: str) -> Along | Refusal:
    strides = {a[1] for a in along}
    if len(strides) > 1:
        return Refusal(Code.STRIDE, f"transposed convolutions of the {what} have strides {sorted(strides)}")
    ends = {d * (k - 1) - 2 * a + e + 1 for k, _, a, e, d in along}
    if len(ends) > 1:
        return Refusal(Code.EXTENT, f"transposed convolutions of the {what} write images of different sizes")
    return _written(common_lattice([_taps(a) for a in along]), strides.pop(), ends.pop())


def _written(lattice: tuple[int, int, int], stride: int, end: int) -> Along:
    """The transposed convolution with these taps that writes so many positions beyond ``stride * (n - 1)``."""
    size, dilation, before = lattice
    front = max(-(before // dilation), 0)  # torch takes no crop for a padding
    size, before = size + front, before + front * dilation
    left = end - (dilation * (size - 1) - 2 * before + 1)
    if left < 0:
        front = -(left // dilation)
        size, before, left = size + front, before + front * dilation, left + front * dilation
    most = max(stride, dilation)
    behind = max(-((most - 1 - left) // dilation), 0)
    return size + behind, stride, before, left - behind * dilation, dilation


def _taps(along: Along) -> tuple[int, int, int]:
    size, _, padding, _, dilation = along
    return size, dilation, padding


@dataclass(frozen=True)
class Composed:
    """A convolution behind a transposed one, as one layer.

    Args:
        axes: geometry along each axis.
        transposed: geometry of the transposed convolution that it is, None for a convolution.
        behind: how its taps are made of those of the two.
    """

    axes: tuple[Axis, ...]
    transposed: tuple[tuple[int, ...], ...] | None
    behind: tuple[Behind, ...]

    def weight(self, second: Tensor, first: Tensor) -> Tensor:
        """``[B, R, C, *K]`` of blocks ``[B, R, I, *K_g]`` and ``[B, I, C, *K_f]``."""
        made = join(second, first, self.behind)
        if self.transposed is None:
            return made
        own = [(b.size, b.dilation, b.before) for b in self.behind]
        whole = [_taps(along) for along in zip(*self.transposed, strict=True)]
        flat = embed_on(made.flatten(0, 1), own, whole)
        return flat.reshape(*made.shape[:2], *flat.shape[1:])


def behind_transposed(second: Sequence[Axis], first: Kernel) -> Composed | Refusal:
    """A convolution of these axes behind a transposed convolution; see `fusions.resampling.upsample_conv`.

    Refuses: `BORDER_UNKNOWN` (a deformable convolution, a padding that depends on the size), `BORDER_MODE`,
    `BORDER_READ`, `BORDER_BIAS`, `STRIDE`.
    """
    if first.transposed is None or len(first.transposed) != 5 or any(a.border is Border.UNKNOWN for a in second):
        return Refusal(Code.BORDER_UNKNOWN, "only pointwise maps compose with a transposed convolution")
    alongs: list[Along] = list(zip(*first.transposed, strict=True))
    convs = [(a.kernel_size, a.stride, a.dilation, a.before, a.after) for a in second]
    for position, (axis, conv, along) in enumerate(zip(second, convs, alongs, strict=True)):
        if axis.reads_outside and axis.border is not Border.ZEROS:
            sentence = f"axis {position}: a layer behind a transposed convolution pads with {axis.border.value}"
            return Refusal(Code.BORDER_MODE, sentence)
        why = border_behind_transposed(conv, along, not first.bias_is_zero())
        if why == "read":
            sentence = f"axis {position}: the second layer pads where the transposed convolution would still write"
            return Refusal(Code.BORDER_READ, sentence)
        if why == "bias":
            sentence = f"axis {position}: the second layer pads with zeros, where the first would give its bias"
            return Refusal(Code.BORDER_BIAS, sentence)
    for transposed in (False, True):
        made = [conv_behind_transposed(c, f, transposed) for c, f in zip(convs, alongs, strict=True)]
        found = tuple(b for b in made if b is not None)
        if len(found) == len(made):
            return _plain(found) if not transposed else _as_transposed(found)
    strides = [a.stride for a in second]
    return Refusal(Code.STRIDE, f"strides {strides} behind a transposed convolution of strides {first.transposed[1]}")


def _plain(found: tuple[Behind, ...]) -> Composed:
    axes = tuple(
        Axis(b.size, b.stride, b.dilation, b.before, b.end + b.dilation * (b.size - 1) - b.before) for b in found
    )
    return Composed(axes, None, found)


def _as_transposed(found: tuple[Behind, ...]) -> Composed:
    key = tuple(zip(*(_written((b.size, b.dilation, b.before), b.stride, b.end) for b in found), strict=True))
    return Composed(tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in key[0]), key, found)
