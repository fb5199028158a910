"""Forms: a value written as one kernel of an earlier value, by its shape; values follow when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

from torch import fx

from reptool.algebra.compose import compose
from reptool.algebra.kernel import IDENTITY, Axis, Kernel, identity
from reptool.algebra.laws import add, concat
from reptool.algebra.resampling import Resampling
from reptool.algebra.side_by_side import Part
from reptool.fusions.linear import linear_to_pointwise, pointwise_to_linear
from reptool.ir.decisions import decided
from reptool.ir.ops import Affine, Concat, Sum, View
from reptool.plan.resolutions.joined import Joined
from reptool.refusal import Code, Refusal

_NEEDS_VALUES = (Code.BORDER_BIAS, Code.CONSTANT_VALUE)


@dataclass(eq=False)
class Form:
    """``value = shape(root)``, computed by the operations `ops`.

    Args:
        root: the earlier value.
        shape: the kernel without values.
        ops: the nodes that compute it.
        make: makes the kernel with its values.
        layout: axes behind the channels after views on the way; None when the kernel's own axes stand.
        named: whether a view on the way names the number of channels.
        around: what moves positions, on whichever side of the kernel, which is pointwise then: see `resampled`.
        at: how many of these stand in front of the kernel.
        other: the same value with resampling around a pointwise kernel, where it is a kernel of its own as well.
        joined: what stands side by side at several resolutions where the kernel reads it; it is one over all of that.
    """

    root: fx.Node
    shape: Kernel
    ops: frozenset[fx.Node]
    make: Callable[[], Kernel | Refusal]
    layout: int | None = None
    named: bool = False
    around: tuple[Resampling, ...] = ()
    at: int = 0
    other: Form | None = None
    joined: Joined | None = None
    _kernel: Kernel | Refusal | None = field(default=None, repr=False)

    @property
    def reads(self) -> tuple[fx.Node, ...]:
        """The values read."""
        return (self.root,) if self.joined is None else self.joined.values

    @property
    def parts(self) -> tuple[Part, ...]:
        """What stands side by side where it is read, if anything does: one layer for each."""
        return () if self.joined is None else self.joined.parts

    @property
    def is_plain(self) -> bool:
        """Whether it is its kernel of its root: nothing is rearranged, resampled or read beside it."""
        return self.layout is None and not self.around and self.joined is None

    def kernel(self) -> Kernel | Refusal:
        """The kernel with its values, in float64 (worked out once)."""
        if self._kernel is None:
            self._kernel = self.make()
        return self._kernel


def start(root: fx.Node) -> Form:
    """The identity of `root`."""
    return Form(root, IDENTITY, frozenset(), identity)


def side_by_side(joined: Joined) -> Form:
    """What stands side by side, as it is."""
    return Form(joined.root, IDENTITY, joined.ops, identity, joined=joined)


def through(node: fx.Node, op: Affine, form: Form, values: bool) -> Form | Refusal:
    """The form of ``op(form)``; `values` tells whether values may be looked at to decide."""
    whole = _through(node, op, form, values)
    other = next((f for f in (form.other, form) if f is not None and (op.resampling or f.around)), None)
    second = None if other is None else resampled(node, op, other, values)
    if isinstance(whole, Form) and isinstance(second, Form):
        return replace(whole, other=second)
    return second if isinstance(second, Form) else whole


def resampled(node: fx.Node, op: Affine, form: Form, values: bool) -> Form | Refusal:
    """The form of ``op(form)`` as a pointwise kernel with resampling around it.

    Resampling whose weights add up to one commutes with pointwise maps, bias included: all resampling on the way is
    kept in its order, and the kernel may stand anywhere between.
    """
    if form.layout is not None or form.joined or not form.shape.is_pointwise or form.shape.axes == ():
        return Refusal(Code.LAYOUT, "resampling behind a view", (node.name,))
    if op.resampling is not None:
        axes = len(op.shape.axes or ())
        if len(form.shape.with_axes(axes).axes or ()) != axes:
            return Refusal(Code.LAYOUT, "resampled along other axes than those of the layer", (node.name,))
        around = (*form.around, op.resampling)
        return Form(form.root, form.shape, form.ops | {node}, form.make, around=around)
    if not op.shape.is_pointwise or op.shape.axes == ():
        return Refusal(Code.RESAMPLING, "a layer that reads neighbours of what is resampled", (node.name,))
    made = _through(node, op, replace(form, around=()), values)
    return made if isinstance(made, Refusal) else replace(made, around=form.around)


def _through(node: fx.Node, op: Affine, form: Form, values: bool) -> Form | Refusal:
    if op.moves or form.around:
        return Refusal(Code.RESAMPLING, "a layer that reads neighbours of what is resampled", (node.name,))
    fit = _viewed(op.shape, form)
    if isinstance(fit, Refusal):
        return fit
    if form.named and fit.out_channels not in (None, form.shape.out_channels):
        return Refusal(Code.LAYOUT, "a view in front names another number of channels")

    def make() -> Kernel | Refusal:
        inner = form.kernel()
        outer = _viewed(op.load(), form)
        if isinstance(inner, Refusal) or isinstance(outer, Refusal):
            return inner if isinstance(inner, Refusal) else outer
        return compose(outer, inner)

    made = _form("form", compose(fit, form.shape), form.root, form.ops | {node}, make, form.layout, values)
    return made if isinstance(made, Refusal) else replace(made, named=form.named, joined=form.joined)


def chained(outer: Form, inner: Form, values: bool) -> Form | Refusal:
    """The form of a value over the root of a form of its root."""

    def make() -> Kernel | Refusal:
        first, then = inner.kernel(), outer.kernel()
        if isinstance(first, Refusal) or isinstance(then, Refusal):
            return first if isinstance(first, Refusal) else then
        return compose(then, first)

    return _form("chain", compose(outer.shape, inner.shape), inner.root, inner.ops | outer.ops, make, None, values)


def _form(
    what: str, shape: Kernel | Refusal, root: fx.Node, ops: frozenset[fx.Node], make: Callable[[], Kernel | Refusal],
    layout: int | None, values: bool,
) -> Form | Refusal:  # fmt: skip
    """A form of this shape; where the shape alone does not say whether it is one, its values do if they are known."""
    if not isinstance(shape, Refusal):
        return Form(root, shape, ops, make, layout)
    if shape.code not in _NEEDS_VALUES:
        return shape
    form = Form(root, identity(), ops, make, layout)
    held: Kernel | Refusal = shape

    def find() -> Kernel | None:
        nonlocal held
        held = form.kernel() if values else shape
        return held.shape_only() if isinstance(held, Kernel) else None

    found = decided(what, (root, *ops), find, None)
    if found is None:
        return held if isinstance(held, Refusal) else shape
    form.shape = found
    return form


def _viewed(kernel: Kernel, form: Form) -> Kernel | Refusal:
    """A map behind views, as a map in front of them: only pointwise ones move across."""
    if form.layout is None or kernel.axes is None:
        return kernel
    if len(kernel.axes) != form.layout or not kernel.is_pointwise:
        return Refusal(Code.LAYOUT, "a map along axes that a view has rearranged")
    axes = len(form.shape.axes or ())
    weight = None if kernel.weight is None else linear_to_pointwise(pointwise_to_linear(kernel.weight), axes)
    return replace(kernel, axes=(Axis(),) * axes, weight=weight)


def arranged(node: fx.Node, op: View, form: Form) -> Form | Refusal:
    """The form of a view: the same kernel, its channels standing elsewhere."""
    if form.around or form.joined:
        return Refusal(Code.LAYOUT, "a view of what is resampled", (node.name,))
    behind = form.layout if form.layout is not None else None if form.shape.axes is None else len(form.shape.axes)
    if behind is None or behind not in op.moves or form.shape.channels is None:
        return Refusal(Code.LAYOUT, "the channels do not stay one axis", (node.name,))
    named = form.named or op.moves[behind] in op.names
    return Form(form.root, form.shape, form.ops | {node}, form.make, op.moves[behind], named)


def summed(node: fx.Node, op: Sum, forms: list[Form]) -> Form | Refusal:
    """The form of a sum of forms of one root."""
    if not all(f.is_plain for f in forms):
        return Refusal(Code.LAYOUT, "a sum of rearranged values", (node.name,))
    mapped = [f.shape if g is None else compose(g.shape_only(), f.shape) for f, g in zip(forms, op.maps, strict=True)]
    refused = next((m for m in mapped if isinstance(m, Refusal)), None)
    if refused is not None:
        return refused
    shape = add([m for m in mapped if isinstance(m, Kernel)])
    if isinstance(shape, Refusal):
        return shape

    def make() -> Kernel | Refusal:
        parts = []
        for form, outer in zip(forms, op.maps, strict=True):
            kernel = form.kernel()
            if outer is not None and isinstance(kernel, Kernel):
                kernel = compose(outer, kernel)
            if isinstance(kernel, Refusal):
                return kernel
            parts.append(kernel)
        return add(parts)

    return Form(forms[0].root, shape, reduce(frozenset.union, [f.ops for f in forms], frozenset({node})), make)


def joined(node: fx.Node, op: Concat, forms: list[Form], expected: int | None = None) -> Form | Refusal:
    """The form of a concatenation of forms of one root; `expected` channels are what its reader asks for."""
    if not all(f.is_plain for f in forms):
        return Refusal(Code.LAYOUT, "a concatenation of rearranged values", (node.name,))
    shapes = [f.shape.with_axes(op.axes) for f in forms]
    if any(len(s.axes or ()) != op.axes for s in shapes):
        return Refusal(Code.LAYOUT, "concatenated along another axis than the channels", (node.name,))
    known = {s.in_channels for s in shapes if s.in_channels is not None}
    if not known and expected is not None and expected % len(shapes) == 0:
        known = {expected // len(shapes)}  # parts that are the same on every channel: equal shares of them
    count = next(iter(known)) if len(known) == 1 else None
    if count is not None:
        shapes = [s.with_channels(count) for s in shapes]
    shape = concat(shapes)
    if isinstance(shape, Refusal):
        return shape

    def make() -> Kernel | Refusal:
        parts = [f.kernel() for f in forms]
        refused = next((p for p in parts if isinstance(p, Refusal)), None)
        if refused is not None:
            return refused
        whole = [p.with_axes(op.axes) for p in parts if isinstance(p, Kernel)]
        return concat(whole if count is None else [p.with_channels(count) for p in whole])

    return Form(forms[0].root, shape, reduce(frozenset.union, [f.ops for f in forms], frozenset({node})), make)
