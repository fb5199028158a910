"""The price of a layer: multiplications, traffic of intermediates and weights under one stated weighting.

``price = multiplications + 2 * (elements read + elements written) + weights + 10,000 per operation``

at a nominal image size (56 positions per axis for images, scaled by the strides on the way). Multiplications of
convolution and linear layers are also kept by themselves: a plan never raises them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.algebra.resampling import Resampling
from reptool.algebra.work import Work
from reptool.ir.ops import Affine, Concat, Fill, Op, Pieces, Reduced, Stack, Sum, View

NOMINAL = {0: (), 1: (512,), 2: (56, 56), 3: (16, 16, 16)}
TRAFFIC = 2.0
OPERATION = 10_000.0
UNKNOWN_CHANNELS = 64

Size = tuple[int, ...]


@dataclass(frozen=True)
class Price:
    """What computing something costs.

    Args:
        total: the weighted price.
        multiplications: those of convolution and linear layers alone.
        layers: number of convolution and linear layers.
        weights: number of their weights.
        others: number of operations that are neither a layer nor free (a norm, a pooling, a sum, a padding).
    """

    total: float = 0.0
    multiplications: int = 0
    layers: int = 0
    weights: int = 0
    others: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(
            self.total + other.total,
            self.multiplications + other.multiplications,
            self.layers + other.layers,
            self.weights + other.weights,
            self.others + other.others,
        )

    def __sub__(self, other: Price) -> Price:
        return Price(
            self.total - other.total,
            self.multiplications - other.multiplications,
            self.layers - other.layers,
            self.weights - other.weights,
            self.others - other.others,
        )


def nominal_size(axes: int) -> Size:
    """The assumed size of a value with `axes` spatial axes."""
    return NOMINAL.get(axes, ())


def out_size(kernel: Kernel, size: Size) -> Size:
    """Output size of a kernel at input `size` (at least one position)."""
    if kernel.transposed is not None:
        if len(size) != len(kernel.transposed[1]):
            size = nominal_size(len(kernel.transposed[1]))
        if len(kernel.transposed) != 5:  # a deformable one
            return tuple(n * s for n, s in zip(size, kernel.transposed[1], strict=True))
        along = zip(size, *kernel.transposed, strict=True)
        return tuple(max(s * (n - 1) + d * (k - 1) - 2 * a + e + 1, 1) for n, k, s, a, e, d in along)
    if not kernel.axes:
        return size  # a linear layer: once at every position
    if len(size) != len(kernel.axes):
        size = nominal_size(len(kernel.axes))
    return tuple(max(a.out_size(n), 1) for a, n in zip(kernel.axes, size, strict=True))


def layer_price(kernel: Kernel, size: Size) -> Price:
    """Price of one convolution or linear layer with this kernel at input `size`."""
    channels = kernel.channels
    if channels is None:
        return Price()
    if kernel.axes and len(size) != len(kernel.axes):
        size = nominal_size(len(kernel.axes))
    groups = channels.groups if kernel.axes != () else 1
    taps = prod(a.kernel_size for a in kernel.axes or ())
    weights = channels.out_channels * (channels.in_channels // groups) * taps
    positions = prod(size) if kernel.transposed is not None else prod(out_size(kernel, size))
    macs = weights * positions
    moved = channels.in_channels * prod(size) + channels.out_channels * prod(out_size(kernel, size))
    outer = 0
    if kernel.axes and kernel.transposed is None and needs_outer_padding(kernel.axes):
        padded = prod(n + a.before + a.after for a, n in zip(kernel.axes, size, strict=True))
        moved += channels.in_channels * 2 * padded
        outer = 1
    return Price(macs + TRAFFIC * moved + weights + OPERATION * (1 + outer), macs, 1, weights, outer)


def price_around(kernel: Kernel, around: Sequence[Resampling], at: int, size: Size) -> Price:
    """Price of a pointwise layer with resampling around it.

    Args:
        kernel: of the layer.
        around: the resampling, in order.
        at: how many of these stand in front of the layer.
        size: of what is read.
    """
    assert kernel.channels is not None
    total = Price()
    for i, resampling in enumerate((*around, None)):
        if i == at:
            total += layer_price(kernel, size)
        if resampling is not None:
            width = kernel.channels.in_channels if i < at else kernel.channels.out_channels
            moved = width * (prod(size) + prod(size := resampling.out_size(size)))
            total += Price(TRAFFIC * moved + OPERATION, others=1)
    return total


def needs_outer_padding(axes: Sequence[Axis]) -> bool:
    """Whether no layer pads like this by itself (asymmetric padding, a crop): a padding in front is needed."""
    symmetric = all(a.before == a.after >= 0 for a in axes)
    return not symmetric and not (all(a.border is Border.ZEROS for a in axes) and all(is_same_padding(a) for a in axes))


def is_same_padding(axis: Axis) -> bool:
    """Whether ``padding="same"`` of torch is this padding."""
    return axis.stride == 1 and axis.before == axis.span // 2 and axis.after == axis.span - axis.span // 2


def _measured(work: Work, layer: Price, positions: int) -> Price:
    """Price of a module by what it executes; numbers that its code holds are taken for as many as the layer's."""
    macs = int(work.multiplications * positions)
    total = macs + TRAFFIC * work.moved * positions + layer.weights + OPERATION * work.operations
    return Price(total, macs, 1, layer.weights, work.operations - 1)


def op_price(op: Op, size: Size, channels: int | None) -> Price:
    """Price of one operation as it stands, at the size of its input."""
    width = channels or UNKNOWN_CHANNELS
    elements = width * prod(size)
    if isinstance(op, Affine):
        if op.layer:
            own = layer_price(op.shape, size)
            if op.work is not None:
                return _measured(op.work, own, prod(out_size(op.shape, size)))
            return own if not op.computed else replace(own, total=own.total + 2 * own.weights, others=own.others + 1)
        if op.paradigm == "identity" or (op.paradigm == "slice" and not op.cost):
            return Price()
        small = op.resampling.out_size(size) if op.moves and op.resampling is not None else out_size(op.shape, size)
        written = width * prod(small)
        return Price(op.cost * written + TRAFFIC * (elements + written) + OPERATION, others=1)
    if isinstance(op, Sum):
        moved = TRAFFIC * (len(op.sources) + 1) * elements
        return Price((len(op.sources) - 1) * elements + moved + OPERATION, others=1)
    if isinstance(op, (View, Pieces)):
        return Price()
    if isinstance(op, (Stack, Reduced)):
        return Price(TRAFFIC * 2 * elements * len(op.sources) + OPERATION, others=1)
    if isinstance(op, Fill):
        return Price(OPERATION, others=1)
    assert isinstance(op, Concat)
    return Price(TRAFFIC * 2 * elements * len(op.sources) + OPERATION, others=1)
