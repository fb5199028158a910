"""Prices of what stands and of what would stand in its place, from one trace's operations and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Generic, Protocol, TypeVar

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.algebra.side_by_side import kernel_of_each, upsampling
from reptool.ir.ops import Affine
from reptool.ir.shapes import keeps_shape
from reptool.plan.candidates import Analysis
from reptool.plan.cost import (
    Price,
    Size,
    is_depthwise,
    layer_price,
    nominal_size,
    op_price,
    other_price,
    out_size,
    price_around,
)
from reptool.plan.forms import Form
from reptool.plan.resolutions.joined import Joined
from reptool.refusal import Code, Refusal

LEAST_GAIN = 0.03
"""What a layer that moves to another resolution must save, of the price of what stands."""
MOVED = ("upsample",)
"""Paradigms by which it moves."""


class Prices:
    """The price of every operation as it stands, and of every form as one layer."""

    def __init__(self, found: Analysis) -> None:
        self.found = found
        self._standing: dict[fx.Node, Price] = {}
        self._fused: dict[Form, Price] = {}

    def standing(self, node: fx.Node) -> Price:
        """Price of an operation as it stands."""
        if node not in self._standing:
            self._standing[node] = self._price_as_is(node)
        return self._standing[node]

    def standing_of(self, form: Form) -> Price:
        """Price of the operations of a form as they stand."""
        return sum(map(self.standing, form.ops), Price())

    def layer(self, form: Form) -> Price:
        """Price of a form as one layer."""
        if form not in self._fused:
            self._fused[form] = self._price_layer(form)
        return self._fused[form]

    def dearer_than(self, node: fx.Node, form: Form) -> Refusal | None:
        """Why a form as one layer is dearer than what stands; None where it is not."""
        before, after = self.standing_of(form), self.layer(form)
        cheaper = after.total <= before.total and after.mixing <= before.mixing
        return None if cheaper else _dearer(node, form, before, after)

    def dearer(self, node: fx.Node, form: Form) -> Refusal:
        """The refusal of a form that is dearer as one layer."""
        return _dearer(node, form, self.standing_of(form), self.layer(form))

    def grows(self, node: fx.Node, form: Form) -> Refusal | None:
        """More weights for no fewer multiplications: a pooling folded into a pointwise convolution, say.

        A depthwise layer has few of both: its price decides.

        What is saved there (an intermediate value, an operation) depends on the size of the image, and what it costs
        does not: it is taken where the size is known and it pays at that size.
        """
        old, new = self.standing_of(form), self.layer(form)
        if is_depthwise(form.shape) or new.weights <= old.weights or new.multiplications < old.multiplications:
            return None
        if new.multiplications > old.multiplications or not form.shape.axes:
            return self.dearer(node, form)
        shape = self.found.facts.shape(form.root)
        if shape is None:
            sentence = (
                f"one layer in place of {len(form.ops)} operations would hold {new.weights:,} weights instead of "
                f"{old.weights:,} for as many multiplications; whether that pays depends on the size of the image: "
                "give example_inputs"
            )
            return Refusal(Code.DEARER, sentence, (node.name,))
        old = sum((self._price_as_is(n, self._seen_size(n)) for n in form.ops), Price())
        new = layer_price(form.shape, shape[-len(form.shape.axes) :], self.found.costs)
        return None if new.total < old.total else _dearer(node, form, old, new, " at the size of example_inputs")

    def gains_little(self, node: fx.Node, form: Form) -> Refusal | None:
        """A layer at another resolution that is hardly cheaper: what the price does not know decides there."""
        moved = any(isinstance(op, Affine) and op.paradigm in MOVED for op in map(self.found.ops.get, form.ops))
        if not (moved or form.joined or form.around):
            return None
        before, after, where = self.standing_of(form), self.layer(form), ""
        seen = self._seen(form)
        if seen is not None:
            before = sum((self._price_as_is(n, self._seen_size(n)) for n in form.ops), Price())
            after, where = self._price_at(form, seen), " at the size of example_inputs"
        enough = self._by_size(after) <= (1 - LEAST_GAIN) * self._by_size(before)
        if form.around:  # in the order in which it stands, it stays
            enough = enough and after.multiplications < before.multiplications
        return None if enough else _dearer(node, form, before, after, where)

    def _by_size(self, price: Price) -> float:
        """What of a price depends on the size of the image: the rest is the same at every resolution."""
        return price.total - self.found.costs.layer * price.layers - self.found.costs.operation * price.others

    def with_channels(self, node: fx.Node, form: Form) -> Form | Refusal:
        """A form of poolings alone on as many channels as its value has."""
        axes = len(form.shape.axes or ())
        count = self.found.facts.channels(node, axes) or self._channels_by_readers(node, axes)
        if count is None:
            return Refusal(Code.CHANNELS, "how many channels this has is not known; give example_inputs", (node.name,))

        def make() -> Kernel | Refusal:
            kernel = form.kernel()
            return kernel if isinstance(kernel, Refusal) else kernel.with_channels(count)

        return replace(form, shape=form.shape.with_channels(count), make=make, _kernel=None)

    def _price_layer(self, form: Form) -> Price:
        joined = form.joined
        return self._price_at(form, self._nominal(form) if joined is None else self._high_size(joined))

    def _price_at(self, form: Form, size: Size) -> Price:
        """Price of a form as one layer, where what it reads has this size: all that stands side by side."""
        costs = self.found.costs
        if form.joined is not None:
            return self._side_by_side(form, form.joined, size)
        if form.around:
            return price_around(form.shape, form.around, form.at, size, costs)
        return layer_price(form.shape, size, costs)

    def _side_by_side(self, form: Form, joined: Joined, high: Size) -> Price:
        """A layer for each resolution, and their sum."""
        kernels, costs = kernel_of_each(form.shape, joined.parts), self.found.costs
        if isinstance(kernels, Refusal):
            return Price(float("inf"))
        total = Price()
        for kernel, part in zip(kernels, joined.parts, strict=True):
            size = tuple(max(n // f, 1) for n, f in zip(high, part.factors, strict=True))
            up = upsampling(form.shape, part)
            total += price_around(kernel, () if up is None else (up,), 0, size, costs)
            if len(part.which) > 1:
                total += other_price(0, 2 * (kernel.in_channels or 0) * prod(size), costs)
        written = (form.shape.out_channels or 0) * prod(out_size(form.shape, high))
        for _ in kernels[1:]:
            total += other_price(written, 3 * written, costs)
        return total

    def _high_size(self, joined: Joined) -> Size:
        """The size of what stands side by side."""
        size = self.found.sizes.get(joined.node, ())
        axes = len(joined.parts[0].factors)
        return size if len(size) == axes else nominal_size(axes)

    def placed(self, form: Form) -> Form:
        """A form with its kernel where it costs least between what resamples."""
        if not form.around or form.shape.channels is None:
            return form
        seen = self._seen(form) or self._nominal(form)
        count, costs = len(form.around) + 1, self.found.costs
        places = [price_around(form.shape, form.around, at, seen, costs).total for at in range(count)]
        return replace(form, at=places.index(min(places)))

    def _seen(self, form: Form) -> Size | None:
        """The size in the example of the image that a form reads, of what stands side by side there together."""
        shape = self.found.facts.shape(form.root if form.joined is None else form.joined.node)
        axes = len(form.shape.axes or ())
        return shape[-axes:] if shape is not None and axes else None

    def _nominal(self, form: Form) -> Size:
        size = self.found.sizes.get(form.root, ())
        wrong = form.shape.axes and len(size) != len(form.shape.axes)
        return nominal_size(len(form.shape.axes or ())) if wrong else size

    def _price_as_is(self, node: fx.Node, seen: Size | None = None) -> Price:
        op = self.found.ops[node]
        size = self.found.sizes.get(op.sources[0], ()) if seen is None else seen
        axes = op.shape.axes if isinstance(op, Affine) else None
        if axes and len(size) != len(axes):
            size = nominal_size(len(axes))
        form = next(iter(self.found.forms.get(node, {}).values()), None)
        channels = form.shape.out_channels if form is not None else None
        if channels is None:
            channels = self.found.facts.channels(node, len(size))
        if channels is None:
            channels = self._channels_by_readers(node)
        return op_price(op, size, channels, self.found.costs)

    def _seen_size(self, node: fx.Node) -> Size | None:
        """The size of the image that an operation reads in the example."""
        op = self.found.ops[node]
        shape = self.found.facts.shape(op.sources[0])
        axes = len(op.shape.axes or ()) if isinstance(op, Affine) else 0
        return None if shape is None else shape[-axes:] if axes else shape[2:]

    def _channels_by_readers(self, node: fx.Node, axes: int | None = None) -> int | None:
        seen, queue = {node}, [node]
        while queue:
            for reader in self.found.reads.readers.get(queue.pop(), ()):
                op = self.found.ops.get(reader)
                known = op.shape.in_channels if isinstance(op, Affine) else None
                if isinstance(op, Affine) and known is not None and axes in (None, len(op.shape.axes or ())):
                    return known
                same = known is None if isinstance(op, Affine) else keeps_shape(reader)
                if reader not in seen and same:
                    seen.add(reader)
                    queue.append(reader)
        return None


def _dearer(node: fx.Node, form: Form, before: Price, after: Price, where: str = "") -> Refusal:
    """The refusal with the numbers that decided."""
    pairs = (
        (before.multiplications, after.multiplications, "multiplications"),
        (before.weights, after.weights, "weights"),
    )
    numbers = ", ".join(f"{new:,} instead of {old:,} {what}" for old, new, what in pairs)
    sentence = (
        f"one layer in place of {len(form.ops)} operations would cost {after.total:,.0f} instead of "
        f"{before.total:,.0f} ({numbers}){where}"
    )
    return Refusal(Code.DEARER, sentence, (node.name,))


class Way(Protocol):
    """One way to compute a value."""

    @property
    def needs(self) -> list[fx.Node]:
        """The values that are read."""


W = TypeVar("W", bound=Way)


class Standing(Generic[W]):
    """The values of an island that are computed, each as often as it is read.

    Args:
        island: its values.
        wanted: those that somebody outside reads.
        way: how each value is computed.
        price: of one way.
    """

    def __init__(
        self, island: Iterable[fx.Node], wanted: Iterable[fx.Node], way: Callable[[fx.Node], W],
        price: Callable[[W], Price],
    ) -> None:  # fmt: skip
        self.way, self._price_of = {n: way(n) for n in island}, price
        self.price = Price()
        self._readers: Counter[fx.Node] = Counter()
        self._read(wanted)

    def is_computed(self, node: fx.Node) -> bool:
        """Whether somebody reads a value."""
        return self._readers[node] > 0

    def change(self, node: fx.Node, way: W) -> None:
        """Compute a value in another way; what that takes is what changes."""
        before, self.way[node] = self.way[node], way
        if self.is_computed(node):
            self.price = self.price + self._price_of(way) - self._price_of(before)
            self._read(way.needs)
            self._leave(before.needs)

    def _read(self, values: Iterable[fx.Node]) -> None:
        stack = list(values)
        while stack:
            node = stack.pop()
            self._readers[node] += 1
            if self._readers[node] == 1 and node in self.way:
                self.price += self._price_of(self.way[node])
                stack += self.way[node].needs

    def _leave(self, values: Iterable[fx.Node]) -> None:
        stack = list(values)
        while stack:
            node = stack.pop()
            self._readers[node] -= 1
            if not self._readers[node] and node in self.way:
                self.price -= self._price_of(self.way[node])
                stack += self.way[node].needs
