"""Parallel transposed convolutions of different kernels, brought onto one lattice.

Tap `k` of a transposed convolution writes from position `p` of its input to position ``s*p + d*k - a`` of its output,
which has ``s*(n - 1) + E`` positions, ``E = d*(K - 1) - 2*a + e + 1`` with output padding `e`. Where strides and `E`
are equal, so are the sizes of all outputs, and on the common lattice of their taps (`fusions.kernel_size`) each kernel
is itself with zeros between and around its taps. The output padding is what is left of `E`; since torch takes
``0 <= e < max(s, d)`` alone, zeros are put in front of the taps or behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.fusions.kernel_size import common_lattice, embed_on
from reptool.refusal import Code, Refusal

Along = tuple[int, int, int, int, int]
"""Kernel size, stride, padding, output padding and dilation along one axis."""


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
    stride = strides.pop()
    size, dilation, before = common_lattice([_taps(a) for a in along])
    left = ends.pop() - (dilation * (size - 1) - 2 * before + 1)
    if left < 0:
        front = -(left // dilation)
        size, before, left = size + front, before + front * dilation, left + front * dilation
    most = max(stride, dilation)
    behind = max(-((most - 1 - left) // dilation), 0)
    return size + behind, stride, before, left - behind * dilation, dilation


def _taps(along: Along) -> tuple[int, int, int]:
    size, _, padding, _, dilation = along
    return size, dilation, padding
