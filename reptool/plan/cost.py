"""The price of a layer: multiplications, traffic of intermediates and weights under one stated weighting.

    price of a layer      =  executed + 9 * (elements read + written) + 16 * weights + 3.5 M
    executed              =  1.1 * multiplications                    of a depthwise layer
                             multiplications * ceil16(rows) / rows    of others, of whose groups each has so many rows
    price of an operation =  work + 2.2 * (elements read + written) + 330,000

in multiplications of a dense convolution, at a nominal image size (56 positions per axis for images, scaled by the
strides on the way). The numbers are those of `Costs`, fitted to what 228 forms take on a CPU
(`benchmarks/forms_cost.py` measures, fits and says how far they are off). A depthwise layer is bound by memory, so that
more taps hardly take longer; several rows for each channel are no depthwise layer, and are computed sixteen at a time.

Multiplications of layers that mix channels are also kept by themselves: a plan never raises them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, prod

from reptool.algebra.kernel import Axis, Border, Kernel
from reptool.algebra.resampling import Resampling
from reptool.algebra.work import Work
from reptool.errors import InputError
from reptool.ir.ops import Affine, Concat, Fill, Op, Pieces, Reduced, Stack, Sum, View

NOMINAL = {0: (), 1: (512,), 2: (56, 56), 3: (16, 16, 16)}
UNKNOWN_CHANNELS = 64

Size = tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """The numbers of the price, in multiplications of a dense convolution; given as `price=` to `reptool.deploy`.

    Args:
        layer: of a layer, whatever its size.
        layer_traffic: of each element that a layer reads or writes.
        weight: of each weight.
        depthwise: of each multiplication of a depthwise layer.
        rows: so many rows of a group are computed at once.
        single: of each channel of a depthwise layer of one tap.
        operation: of an operation that is no layer, whatever its size.
        traffic: of each element that it reads or writes.
        pooled: of each element that an average pooling writes: the geometric mean of ONNX Runtime and eager PyTorch,
            whose pooling is not vectorized.
        tap: of each element that it adds, likewise.
        column: of each product that a transposed convolution adds to a position of its output: what ONNX Runtime takes
            to gather them, which decides where there are few channels.
        packed: of each weight of a transposed convolution, beside `weight`: eager PyTorch arranges them at every call,
            which decides where there are few positions.

    Raises:
        InputError: a number that is negative or not finite; `rows` below 1.

    >>> import reptool, torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
    >>> [region.layer for region in reptool.explain(model, price=reptool.Costs(weight=1.0)).regions]
    ['0']
    """

    layer: float = 3.5e6
    layer_traffic: float = 9.0
    weight: float = 16.0
    depthwise: float = 1.1
    rows: int = 16
    single: float = 155e3
    operation: float = 330e3
    traffic: float = 2.2
    pooled: float = 50.0
    tap: float = 4.0
    column: float = 20.0
    packed: float = 40.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
                raise InputError(f"Costs({name}={value!r}); give a number that is not negative")
        if self.rows < 1:
            raise InputError(f"Costs(rows={self.rows!r}); give 1 or more")

    @staticmethod
    def of(held: Mapping[str, float]) -> Costs:
        """Costs from their numbers by name, as `dataclasses.asdict` gives them.

        Raises:
            InputError: other names.
        """
        names = {f.name for f in fields(Costs)}
        if set(held) != names:
            raise InputError(f"costs have the names {sorted(names)}, not {sorted(map(str, held))}")
        return Costs(**held)  # type: ignore[arg-type]


DEFAULT = Costs()


@dataclass(frozen=True)
class Price:
    """What computing something costs.

    Args:
        total: the weighted price.
        multiplications: those of convolution and linear layers alone.
        mixing: those of layers that mix channels: of all but depthwise ones.
        layers: number of convolution and linear layers.
        weights: number of their weights.
        others: number of operations that are neither a layer nor free (a norm, a pooling, a sum, a padding).
    """

    total: float = 0.0
    multiplications: int = 0
    mixing: int = 0
    layers: int = 0
    weights: int = 0
    others: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(
            self.total + other.total,
            self.multiplications + other.multiplications,
            self.mixing + other.mixing,
            self.layers + other.layers,
            self.weights + other.weights,
            self.others + other.others,
        )

    def __sub__(self, other: Price) -> Price:
        return Price(
            self.total - other.total,
            self.multiplications - other.multiplications,
            self.mixing - other.mixing,
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


def layer_price(kernel: Kernel, size: Size, costs: Costs = DEFAULT) -> Price:
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
    read, outer = prod(size), 0
    if kernel.axes and kernel.transposed is None and needs_outer_padding(kernel.axes):
        read, outer = prod(n + a.before + a.after for a, n in zip(kernel.axes, size, strict=True)), 1
    moved = channels.in_channels * read + channels.out_channels * prod(out_size(kernel, size))
    depthwise = bool(kernel.axes) and is_depthwise(kernel)
    executed = costs.depthwise * macs if depthwise else macs * _rounded(kernel, groups, costs)
    single = costs.single * channels.in_channels if depthwise and taps == 1 else 0.0
    total = executed + costs.layer_traffic * moved + costs.weight * weights + costs.layer + single
    if kernel.transposed is not None:
        total += costs.column * channels.out_channels * taps * positions + costs.packed * weights
    if outer:  # the same as a padding in front of the layer: to write one as the other gains nothing
        padding = other_price(0, channels.in_channels * (prod(size) + read), costs)
        return Price(_whole(total) + padding.total, macs, 0 if depthwise else macs, 1, weights, 1)
    return Price(_whole(total), macs, 0 if depthwise else macs, 1, weights, outer)


def is_depthwise(kernel: Kernel) -> bool:
    """Whether a kernel is a layer that computes each channel of the one of the same number alone."""
    channels = kernel.channels
    return channels is not None and channels.groups == channels.in_channels == channels.out_channels > 1


def _rounded(kernel: Kernel, groups: int, costs: Costs) -> float:
    """How many rows of a group are executed for each that it has."""
    if not kernel.axes or kernel.transposed is not None or kernel.out_channels is None:
        return 1.0
    rows = max(kernel.out_channels // groups, 1)
    return ceil(rows / costs.rows) * costs.rows / rows


def price_around(kernel: Kernel, around: Sequence[Resampling], at: int, size: Size, costs: Costs = DEFAULT) -> Price:
    """Price of a pointwise layer with resampling around it.

    Args:
        kernel: of the layer.
        around: the resampling, in order.
        at: how many of these stand in front of the layer.
        size: of what is read.
        costs: the numbers of the price.
    """
    assert kernel.channels is not None
    total = Price()
    for i, resampling in enumerate((*around, None)):
        if i == at:
            total += layer_price(kernel, size, costs)
        if resampling is not None:
            width = kernel.channels.in_channels if i < at else kernel.channels.out_channels
            total += _resampled(resampling, width, size, costs)
            size = resampling.out_size(size)
    return total


def _resampled(resampling: Resampling, width: int, size: Size, costs: Costs) -> Price:
    """Price of resampling so many channels."""
    read, written = prod(size), prod(resampling.out_size(size))
    taps = max(read / max(written, 1), 1.0)
    if "kernel_size" in dict(resampling.settings):
        taps = prod(dict(resampling.settings)["kernel_size"])
    each = costs.pooled + costs.tap * taps if "Pool" in resampling.name else 0.0
    return other_price(width * each * written, width * (read + written), costs)


def needs_outer_padding(axes: Sequence[Axis]) -> bool:
    """Whether no layer pads like this by itself (asymmetric padding, a crop): a padding in front is needed."""
    symmetric = all(a.before == a.after >= 0 for a in axes)
    return not symmetric and not (all(a.border is Border.ZEROS for a in axes) and all(is_same_padding(a) for a in axes))


def is_same_padding(axis: Axis) -> bool:
    """Whether ``padding="same"`` of torch is this padding."""
    return axis.stride == 1 and axis.before == axis.span // 2 and axis.after == axis.span - axis.span // 2


def _measured(work: Work, layer: Price, kernel: Kernel, size: Size, costs: Costs) -> Price:
    """Price of a module by what it executes; numbers that its code holds are taken for as many as the layer's."""
    positions = prod(out_size(kernel, size))
    macs = int(work.multiplications * positions)
    executed = macs * _rounded(kernel, kernel.channels.groups if kernel.channels is not None else 1, costs)
    total = executed + costs.layer_traffic * work.moved * positions + costs.weight * layer.weights
    total += costs.layer + costs.operation * (work.operations - 1)
    return Price(_whole(total), macs, macs, 1, layer.weights, work.operations - 1)


def _whole(total: float) -> float:
    """A whole number, so that the order in which prices are added decides nothing."""
    return float(round(total))


def other_price(work: float, moved: float, costs: Costs) -> Price:
    """Price of an operation that is no layer."""
    return Price(_whole(work + costs.traffic * moved + costs.operation), others=1)


def op_price(op: Op, size: Size, channels: int | None, costs: Costs = DEFAULT) -> Price:
    """Price of one operation as it stands, at the size of its input."""
    width = channels or UNKNOWN_CHANNELS
    elements = width * prod(size)
    if isinstance(op, Affine):
        if op.layer:
            own = layer_price(op.shape, size, costs)
            if op.work is not None:
                return _measured(op.work, own, op.shape, size, costs)
            made = own.total + costs.traffic * 2 * own.weights + costs.operation
            return own if not op.computed else replace(own, total=_whole(made), others=own.others + 1)
        if op.paradigm == "identity" or (op.paradigm == "slice" and not op.cost):
            return Price()
        if op.moves and op.resampling is not None:
            return _resampled(op.resampling, width, size, costs)
        written = width * prod(out_size(op.shape, size))
        each = costs.pooled + costs.tap * op.cost if op.paradigm == "avg_pool" else op.cost
        return other_price(each * written, elements + written, costs)
    if isinstance(op, Sum):
        return other_price((len(op.sources) - 1) * elements, (len(op.sources) + 1) * elements, costs)
    if isinstance(op, (View, Pieces)):
        return Price()
    if isinstance(op, (Stack, Reduced)):
        return other_price(0, 2 * elements * len(op.sources), costs)
    if isinstance(op, Fill):
        return other_price(0, 0, costs)
    assert isinstance(op, Concat)
    return other_price(0, 2 * elements * len(op.sources), costs)
