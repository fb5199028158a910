"""`Kernel`: an affine, shift-equivariant map between channelled signals.

Per spatial axis (0 for linear layers, 1, 2 or 3)::

    y[o, p] = b[o] + sum_{c, k} W[o, c, k] * x~[c, s*p + d*k - a]

with weight `W`, bias `b`, stride `s`, dilation `d`, padding `a` before and `e` after (a negative one is a
crop), and `x~` the input extended by the border mode. The *extent* ``T = a + e - d*(K - 1)`` fixes the
output size: ``floor((n + T - 1) / s) + 1``.

A kernel without a weight is a *shape*: planning works on shapes, weights are touched once, in float64.
Nothing here knows of ``torch.fx``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from math import gcd
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptool.fusions.shortcut import dirac_kernel

IntArray: TypeAlias = "NDArray[np.int64]"

ZERO_TOLERANCE = 1e-12
"""A bias is zero when it is below this fraction of the terms it is the sum of."""


class Border(str, Enum):
    """How a signal is extended beyond its edge along one axis."""

    ZEROS = "zeros"
    REFLECT = "reflect"
    REPLICATE = "replicate"
    CIRCULAR = "circular"
    CONSTANT = "constant"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Axis:
    """Geometry along one spatial axis; see the module's formula for the symbols."""

    kernel_size: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    border: Border = Border.ZEROS

    def __post_init__(self) -> None:
        if self.kernel_size == 1 and self.dilation != 1:
            object.__setattr__(self, "dilation", 1)
        if not self.reads_outside and self.border not in (Border.ZEROS, Border.UNKNOWN):
            object.__setattr__(self, "border", Border.ZEROS)

    @property
    def span(self) -> int:
        """Distance between the first and the last tap."""
        return self.dilation * (self.kernel_size - 1)

    @property
    def extent(self) -> int:
        """``T = a + e - d*(K - 1)``: equal extents and strides give equal output sizes for every input."""
        return self.before + self.after - self.span

    @property
    def reads_outside(self) -> bool:
        """Whether any tap can lie on an extended position."""
        return self.before > 0 or self.after > 0

    @property
    def is_pointwise(self) -> bool:
        """One tap, stride 1, nothing padded or cropped, border known."""
        return (
            self.kernel_size == 1
            and self.stride == 1
            and self.before == self.after == 0
            and self.border is not Border.UNKNOWN
        )

    def out_size(self, size: int) -> int:
        """Output size for an input of `size` positions (0 when nothing fits)."""
        return max((size + self.extent - 1) // self.stride + 1, 0)


class Channels:
    """Which input channels each output channel reads: one interval ``[lo, hi)`` per output channel.

    Dense layers, groups, depthwise layers, channel slices (a range of the input), parts of a concatenation
    (a range of the output) and permutations are all intervals; nothing is ever expanded to find out what it is.
    A weight of this structure is stored as ``[O, width, *K]``: row `o` starts at channel ``offset[o]``.
    """

    def __init__(self, in_channels: int, lo: IntArray, hi: IntArray) -> None:
        self.in_channels = int(in_channels)
        self.lo = np.asarray(lo, dtype=np.int64)
        self.hi = np.asarray(hi, dtype=np.int64)

    @staticmethod
    def grouped(in_channels: int, out_channels: int, groups: int = 1) -> Channels:
        """``groups`` equal consecutive blocks, as in `nn.Conv2d`."""
        wide, tall = in_channels // groups, out_channels // groups
        lo = np.repeat(np.arange(groups, dtype=np.int64) * wide, tall)
        return Channels(in_channels, lo, lo + wide)

    @staticmethod
    def select(in_channels: int, indices: Sequence[int] | IntArray) -> Channels:
        """Output `o` reads input channel ``indices[o]`` alone."""
        lo = np.asarray(indices, dtype=np.int64)
        return Channels(in_channels, lo, lo + 1)

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return len(self.lo)

    @cached_property
    def width(self) -> int:
        """Stored channels per row: the widest interval."""
        return int((self.hi - self.lo).max(initial=1))

    @cached_property
    def offset(self) -> IntArray:
        """First stored input channel of each row."""
        return np.minimum(self.lo, self.in_channels - self.width)

    @cached_property
    def is_diagonal(self) -> bool:
        """Output `o` reads input `o` alone, for every channel."""
        return (
            self.out_channels == self.in_channels
            and self.width == 1
            and bool((self.lo == np.arange(self.in_channels)).all())
        )

    @cached_property
    def groups(self) -> int:
        """The largest `groups` of a convolution that can hold this structure (1 when only dense can)."""
        common = gcd(self.in_channels, self.out_channels)
        rows = np.arange(self.out_channels)
        for groups in sorted((g for g in range(1, common + 1) if common % g == 0), reverse=True):
            wide, tall = self.in_channels // groups, self.out_channels // groups
            start = rows // tall * wide
            if ((self.lo >= start) & (self.hi <= start + wide)).all():
                return groups
        return 1

    def hull(self, other: Channels) -> Channels:
        """The smallest intervals that hold both."""
        return Channels(self.in_channels, np.minimum(self.lo, other.lo), np.maximum(self.hi, other.hi))

    def after(self, first: Channels) -> Channels:
        """The structure of ``self`` applied to the output of `first`."""
        pairs, inverse = np.unique(np.stack([self.lo, self.hi]), axis=1, return_inverse=True)
        lo = np.array([first.lo[i:j].min(initial=first.in_channels) for i, j in pairs.T], dtype=np.int64)
        hi = np.array([first.hi[i:j].max(initial=0) for i, j in pairs.T], dtype=np.int64)
        inverse = inverse.reshape(-1)
        return Channels(first.in_channels, lo[inverse], hi[inverse])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Channels):
            return NotImplemented
        return (
            self.in_channels == other.in_channels
            and np.array_equal(self.lo, other.lo)
            and np.array_equal(self.hi, other.hi)
        )

    def __hash__(self) -> int:
        return hash((self.in_channels, self.lo.tobytes(), self.hi.tobytes()))

    def __repr__(self) -> str:
        return f"Channels({self.in_channels}->{self.out_channels}, width={self.width})"


@dataclass(frozen=True, eq=False)
class Kernel:
    """An affine, shift-equivariant map, or (without a weight) the shape of one.

    Args:
        channels: the channel structure; None for a map that is the same on every channel (identity, pooling,
            a scalar), which fits any number of them.
        axes: geometry per spatial axis; None for a map that fits any number of axes. An empty tuple is a
            linear layer: the channel axis is the last one.
        weight: ``[O, width, *K]`` float64, None for a shape.
        bias: ``[O]`` float64 or None for zero (or for a shape).
        biased: whether the bias may be nonzero.
        bias_terms: ``[O]`` sum of the absolute values the bias was summed from, to tell rounding from a value.
        border_value: ``[C]`` float64, the constant of axes whose border is `Border.CONSTANT`.
        transposed: geometry of a transposed convolution this stands for; its border is then unknown. Of a deformable
            one with a sixth part: which layer it is (what it samples is its own) and its groups.
    """

    channels: Channels | None
    axes: tuple[Axis, ...] | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    biased: bool = False
    bias_terms: Tensor | None = field(default=None, repr=False)
    border_value: Tensor | None = None
    transposed: tuple[Any, ...] | None = None

    # --- questions
    @property
    def in_channels(self) -> int | None:
        """Channels read, None when any number fits."""
        return None if self.channels is None else self.channels.in_channels

    @property
    def out_channels(self) -> int | None:
        """Channels written, None when any number fits."""
        return None if self.channels is None else self.channels.out_channels

    @property
    def is_pointwise(self) -> bool:
        """One tap at stride 1 with nothing padded or cropped, on every axis."""
        return self.transposed is None and all(axis.is_pointwise for axis in self.axes or ())

    @property
    def is_channelwise(self) -> bool:
        """Every output channel reads the input channel of the same number only."""
        return self.channels is None or self.channels.is_diagonal

    @property
    def is_identity(self) -> bool:
        """Whether this is known to give each value as it is; a shape never is."""
        whole = self.channels is None and not self.biased and self.is_pointwise
        return whole and self.weight is not None and self.weight.item() == 1.0

    def bias_is_zero(self) -> bool:
        """Whether the bias is zero beyond rounding (for a shape: whether it is known to be)."""
        if not self.biased or self.bias is None:
            return not self.biased or self.weight is not None
        terms = self.bias.abs() if self.bias_terms is None else self.bias_terms
        return bool((self.bias.abs() <= ZERO_TOLERANCE * terms).all())

    # --- changes of form, never of meaning
    def with_channels(self, channels: int) -> Kernel:
        """The same map on exactly `channels` channels."""
        if self.channels is not None:
            return self
        grown = Channels.grouped(channels, channels, channels)
        if self.weight is None:
            value = None if self.border_value is None else self.border_value.expand(channels)
            return replace(self, channels=grown, border_value=value)
        weight = self.weight.expand(channels, *self.weight.shape[1:])
        spread = [None if t is None else t.expand(channels) for t in (self.bias, self.bias_terms, self.border_value)]
        return replace(
            self, channels=grown, weight=weight, bias=spread[0], bias_terms=spread[1], border_value=spread[2]
        )

    def with_axes(self, count: int) -> Kernel:
        """The same map on exactly `count` spatial axes."""
        if self.axes is not None:
            return self
        weight = None if self.weight is None else self.weight.reshape(*self.weight.shape[:2], *([1] * count))
        return replace(self, axes=(Axis(),) * count, weight=weight)

    def shape_only(self) -> Kernel:
        """This kernel without its values."""
        return replace(self, weight=None, bias=None, bias_terms=None)

    def windowed(self, channels: Channels) -> Kernel:
        """The same values stored in the wider structure `channels` (which must hold this one)."""
        if self.channels is None or channels == self.channels:
            return replace(self, channels=channels)
        if self.weight is None:
            return replace(self, channels=channels)
        return replace(self, channels=channels, weight=rewindow(self.weight, self.channels, channels))

    def grouped_weight(self) -> Tensor:
        """The weight as `nn.Conv*d` stores it: ``[O, C // groups, *K]``, with the most groups possible."""
        assert self.channels is not None and self.weight is not None
        ch = self.channels
        target = Channels.grouped(ch.in_channels, ch.out_channels, ch.groups)
        return rewindow(self.weight, ch, target).contiguous()


def rewindow(weight: Tensor, old: Channels, new: Channels) -> Tensor:
    """Move rows stored from ``old.offset`` into rows stored from ``new.offset``, zero elsewhere."""
    if old.width == new.width and np.array_equal(old.offset, new.offset):
        return weight
    shift = torch.as_tensor(old.offset - new.offset)
    column = shift[:, None] + torch.arange(weight.shape[1])
    row = torch.arange(weight.shape[0])[:, None].expand_as(column)
    held = (column >= 0) & (column < new.width)
    out = weight.new_zeros(weight.shape[0], new.width, *weight.shape[2:])
    out[row[held], column[held]] = weight[held.to(weight.device)]
    return out


IDENTITY = Kernel(None, None)
"""The shape of the identity."""


def identity() -> Kernel:
    """The identity on any number of channels and axes, with its weight."""
    return Kernel(None, None, dirac_kernel(1))
