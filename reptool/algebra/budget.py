"""Budgets: what a layer and its check would take in memory, in bytes, told from shapes before anything is made.

``weights = 8 * O * width * prod(K)`` and, since torch convolves float64 by unfolding the image,
``check = 8 * C / groups * prod(K) * prod(out)`` at the smallest image that shows every tap inside and at every border.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from reptool.algebra.kernel import Axis, Kernel
from reptool.refusal import Code, Refusal

BYTES = 1 << 30
"""What one layer, and what its check, may take beyond what the model holds anyway."""
GROWTH = 4
"""A layer may be so many times as large as what it replaces, however large that is."""
_FLOAT64 = 8


def weight_bytes(kernel: Kernel) -> int:
    """Bytes of a kernel's weight in float64.

    >>> from reptool.algebra.kernel import Channels
    >>> weight_bytes(Kernel(Channels.grouped(3, 4), (Axis(3), Axis(3))))
    864
    """
    rows, width = (1, 1) if kernel.channels is None else (kernel.channels.out_channels, kernel.channels.width)
    return _FLOAT64 * rows * width * prod(a.kernel_size for a in kernel.axes or ())


def check_bytes(kernel: Kernel, size: Sequence[int], batch: int = 1) -> int:
    """Bytes that running the kernel on an image of `size` positions takes in float64."""
    if kernel.channels is None or not kernel.axes:
        return 0
    wide = kernel.channels.in_channels // kernel.channels.groups
    taps = prod(a.kernel_size for a in kernel.axes)
    return _FLOAT64 * batch * wide * taps * prod(max(a.out_size(n), 1) for a, n in zip(kernel.axes, size, strict=True))


def smallest_size(axes: Sequence[Axis]) -> tuple[int, ...]:
    """The smallest image on which every tap that may lie in the padding does so at its border, and reads the image too.

    Not all taps at one position: a kernel of dilation 36 in a padding of 36 is wider than the image it is checked on.
    """
    return tuple(max(a.span - a.before, a.span - a.after, 1) + a.stride + 1 for a in axes)


def too_large(kernel: Kernel, replaced: int) -> Refusal | None:
    """Why a layer of this shape is not even made; None where it may be.

    Args:
        kernel: its shape.
        replaced: bytes of the weights it replaces, in float64.
    """
    weights = weight_bytes(kernel)
    if weights > max(BYTES, GROWTH * replaced):
        return Refusal(Code.TOO_LARGE, f"its weight would take {weights / 1e9:,.1f} GB in float64")
    check = check_bytes(kernel, smallest_size(kernel.axes or ()))
    if check > BYTES:
        return Refusal(Code.TOO_LARGE, f"checking it would take {check / 1e9:,.1f} GB")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and nothing about the code that was run."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate" in str(error)
