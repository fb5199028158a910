"""Sizes of values as products of numbers and of sizes that nobody knows, and the axes that a view leaves alone.

A view to other sizes keeps the order of the elements. With axes of sizes ``n_0 .. n_r`` before and ``m_0 .. m_s`` after
it, axis `a` is axis `b` behind it, whatever becomes of the others, where::

    n_a = m_b    and    n_0 ... n_{a-1} = m_0 ... m_{b-1}    or    n_{a+1} ... n_r = m_{b+1} ... m_s

The sizes are compared as monomials in the sizes of values that are made of nothing known: what holds for these holds
at every size. A convolution of stride 1 that writes as many positions as it reads hands sizes on, and so do linear
layers, activations and views.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

from torch import fx

from reptool.ir.nodes import name_of
from reptool.ir.ops import Affine, Sum, View
from reptool.ir.shapes import keeps_shape
from reptool.lift.reading import Context


@dataclass(frozen=True)
class Size:
    """``number`` times a product of sizes that are not known: axes of values, and numbers that code works out."""

    number: int
    of: frozenset[tuple[Any, int]] = frozenset()

    def __mul__(self, other: Size) -> Size:
        factors = Counter(dict(self.of))
        factors.update(dict(other.of))
        return Size(self.number * other.number, frozenset(factors.items()))

    def over(self, other: Size) -> Size | None:
        """The quotient, where it is one at every size."""
        factors = Counter(dict(self.of))
        factors.subtract(dict(other.of))
        if other.number < 1 or self.number % other.number or min(factors.values(), default=0) < 0:
            return None
        return Size(self.number // other.number, frozenset((s, n) for s, n in factors.items() if n))


@dataclass(frozen=True)
class Floor:
    """A quotient rounded down."""

    whole: Size
    by: Size


ONE = Size(1)
At = tuple[fx.Node, int]
"""An axis of a value, counted from the front."""


def product(sizes: Sequence[Size]) -> Size:
    """All of them."""
    found = ONE
    for size in sizes:
        found = found * size
    return found


def sizes_of(node: fx.Node, ctx: Context) -> list[Size] | None:
    """The sizes of all axes of a value of known rank."""
    rank = ctx.rank(node)
    return None if rank is None else [size_of(node, axis, ctx) for axis in range(rank)]


def size_of(node: fx.Node, axis: int, ctx: Context) -> Size:
    """The size of one axis of a value of known rank.

    Args:
        node: the value.
        axis: counted from the front.
        ctx: what is known of others; keeps what was followed, so that no operation is followed twice.
    """
    ctx.asked = True
    stack: list[At] = [(node, axis)]
    while stack:
        at = stack[-1]
        behind = None if at in ctx.ends else _behind(*at, ctx)
        missing = [b for b in behind if b not in ctx.ends] if isinstance(behind, list) else []
        if not missing:
            stack.pop()
            if at not in ctx.ends:
                ctx.ends[at] = _end(at, behind, ctx)
        stack += missing
    return _told(ctx.ends[node, axis], ctx)


def _end(at: At, behind: Size | list[At] | None, ctx: Context) -> Size | At:
    """What the operations in front of an axis say: its size, or of which other one it is the size."""
    if not isinstance(behind, list):
        return at if behind is None else behind
    ends = {ctx.ends[b] for b in behind}
    if len(ends) > 1:  # what the readers of two values tell may be one size
        ends = {_told(e, ctx) for e in ends}
    return ends.pop() if len(ends) == 1 else at


def _told(end: Size | At, ctx: Context) -> Size:
    """The size at an end, by what reads the value where nothing in front tells it."""
    if isinstance(end, Size):
        return end
    node, axis = end
    rank = ctx.rank(node)
    free = rank is not None and axis < rank and not isinstance(ctx.ops.get(node), View | Affine | Sum)
    count = ctx.expected(node, rank - 1 - axis) if free and rank is not None and not _hands_on(node, axis) else None
    return _symbol(node, axis) if count is None else Size(count)


def _symbol(node: fx.Node, axis: int) -> Size:
    return Size(1, frozenset({((node, axis), 1)}))


def _stated(node: fx.Node, axis: int, ctx: Context) -> Size | None:
    """What a graph that came with proven shapes says of a size."""
    shape: Any = node.meta.get("sizes")
    if shape is None or ctx.rank(node) != len(shape):
        return None
    return _monomial(shape[axis])


def _monomial(stated: tuple[int, dict[str, int]]) -> Size:
    return Size(stated[0], frozenset(stated[1].items()))


def _behind(node: fx.Node, axis: int, ctx: Context) -> Size | list[At] | None:
    """The size where it is known here, the axes of other values that it is if they are one, or None."""
    stated = _stated(node, axis, ctx)
    rank, op = ctx.rank(node), ctx.ops.get(node)
    if stated is not None or rank is None or axis >= rank:
        return stated
    if isinstance(op, View):
        old = next((a for a, b in op.moves.items() if b == rank - 1 - axis), None)
        before = ctx.rank(op.source)
        if old is not None and before is not None:
            return [(op.source, before - 1 - old)]
        return op.sizes[axis] if op.sizes is not None and len(op.sizes) == rank else None
    if isinstance(op, Affine):
        return _behind_map(op, rank, axis, ctx)
    if isinstance(op, Sum):
        return [(s, axis) for s in op.sources] if all(ctx.rank(s) == rank for s in op.sources) else None
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and _hands_on(node, axis):
        source = ctx.read(node, first) or first
        return [(source, axis)] if ctx.rank(source) == rank else None
    return None


def _hands_on(node: fx.Node, axis: int) -> bool:
    """Whether an operation that is no map gives an axis as it reads it."""
    batch = axis == 0 and name_of(node).endswith(("pool1d", "pool2d", "pool3d", "interpolate"))
    return bool(node.args) and isinstance(node.args[0], fx.Node) and (batch or keeps_shape(node))


def _behind_map(op: Affine, rank: int, axis: int, ctx: Context) -> Size | list[At] | None:
    """As `_behind`, of what an affine map gives."""
    axes, behind = op.shape.axes, rank - 1 - axis
    before = [(op.source, axis)] if ctx.rank(op.source) == rank else None
    if axes is None:
        return before if op.shape.in_channels == op.shape.out_channels else None
    if behind == len(axes):
        return before if op.shape.out_channels is None else Size(op.shape.out_channels)
    if behind > len(axes):
        return before
    along = axes[len(axes) - 1 - behind]
    same = along.stride == 1 and along.extent == 0 and op.shape.transposed is None
    return before if same else None


# --- the sizes that a view is given
def given_sizes(node: fx.Node, ctx: Context) -> list[Size | int] | None:
    """The sizes among the arguments of a view: -1 is what is left; None where not even their number is known."""
    given: Any = [*node.args[1:], *node.kwargs.values()]
    return listed(given[0] if len(given) == 1 and not isinstance(given[0], int) else given, ctx)


def listed(given: Any, ctx: Context) -> list[Size | int] | None:
    """Sizes that are given one by one, or as a shape or a part of one."""
    if isinstance(given, fx.Node) and given.meta.get("kind") == "number":
        return [_number(given, ctx)]
    return _items(given, ctx)


def _number(value: Any, ctx: Context) -> Size | int:
    """A size; a number that is worked out in no way that is followed is one of its own."""
    if type(value) is int:
        return value if value < 1 else Size(value)
    if not isinstance(value, fx.Node):
        return Size(1, frozenset({(str(value), 1)}))
    stated = value.meta.get("sizes")
    if stated is not None and len(stated) == 1:
        return _monomial(stated[0])
    return _worked_out(value, ctx) or Size(1, frozenset({(value, 1)}))


def _worked_out(value: fx.Node, ctx: Context) -> Size | None:
    """A size that is read, multiplied or divided."""
    name = name_of(value)
    at: Any
    if name == "getitem" and type(value.args[1]) is int:
        items, at = _items(value.args[0], ctx), value.args[1]
        found = items[at] if items is not None and -len(items) <= at < len(items) else None
        return found if isinstance(found, Size) else None
    if value.op == "call_method" and name == "size" and len(value.args) == 2 and not value.kwargs:
        of, at = _read(value, ctx), value.args[1]
        rank = None if of is None else ctx.rank(of)
        known = of is not None and rank is not None and type(at) is int and -rank <= at < rank
        return size_of(of, at % rank, ctx) if known else None  # type: ignore[arg-type]
    if name in ("mul", "floordiv") and len(value.args) == 2 and not value.kwargs:
        a, b = (_number(v, ctx) for v in value.args)
        if isinstance(a, Size) and isinstance(b, Size):
            return a * b if name == "mul" else a.over(b) or Size(1, frozenset({(Floor(a, b), 1)}))
    return None


def _read(value: fx.Node, ctx: Context) -> fx.Node | None:
    """The value whose size or shape a node reads."""
    of: Any = value.args[0]
    while isinstance(of, fx.Node) and of.target is getattr and of.args[1] == "data":
        of = of.args[0]
    return (ctx.read(value, of) or of) if isinstance(of, fx.Node) else None


def shape_read(value: Any, ctx: Context) -> fx.Node | None:
    """The value whose whole shape this is."""
    if not isinstance(value, fx.Node):
        return None
    shape = value.target is getattr and value.args[1] == "shape"
    size = value.op == "call_method" and name_of(value) == "size" and len(value.args) == 1 and not value.kwargs
    return _read(value, ctx) if shape or size else None


def _items(value: Any, ctx: Context) -> list[Size | int] | None:
    """The items of a shape, of a part of one, or of such parts together."""
    if isinstance(value, (tuple, list)):
        return [_number(v, ctx) for v in value]
    of = shape_read(value, ctx)
    if of is not None:
        found = sizes_of(of, ctx)
        return None if found is None else list(found)
    if not isinstance(value, fx.Node):
        return None
    name = name_of(value)
    if name == "getitem" and isinstance(value.args[1], slice):
        key = value.args[1]
        items = _items(value.args[0], ctx)
        plain = all(b is None or type(b) is int for b in (key.start, key.stop, key.step))
        return items[key] if items is not None and plain else None
    if name == "add" and len(value.args) == 2:
        parts = [_items(v, ctx) for v in value.args]
        return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
    return None


# --- what stays
def completed(before: Sequence[Size], given: Sequence[Size | int]) -> list[Size | None]:
    """The sizes behind a view; None for one that is not found."""
    known = [s for s in given if isinstance(s, Size)]
    rest = product(before).over(product(known)) if len(known) + 1 == len(given) else None
    return [s if isinstance(s, Size) else rest if s == -1 else None for s in given]


def _from_one_end(before: Sequence[Size], after: Sequence[Size | None]) -> dict[int, int]:
    """The axes in front of which there are as many elements, as far as that is known."""
    at: dict[tuple[Size, Size], int] = {}
    whole, found = ONE, dict[int, int]()
    for a, size in enumerate(before):
        at.setdefault((whole, size), a)
        whole = whole * size
    whole = ONE
    for b, given in enumerate(after):
        if given is None:
            break
        if (whole, given) in at:
            found[b] = at[whole, given]
        whole = whole * given
    return found


def same_axes(before: Sequence[Size], after: Sequence[Size | None]) -> list[int]:
    """For each axis behind a view the one that it was; -1 for a mixture."""
    front, back = (_from_one_end(before[::turn], after[::turn]) for turn in (1, -1))
    ends = {len(after) - 1 - b: len(before) - 1 - a for b, a in back.items()}
    return [front.get(b, ends.get(b, -1)) for b in range(len(after))]


def numbers(
    given: Sequence[Size | int | None], before: Sequence[Size], shape: Sequence[int], known: dict[Any, int]
) -> list[int] | None:
    """The sizes that a view is given where what it reads is of this shape; None where nothing tells them.

    Of an axis that is a product of sizes which are not known, the last one takes all that there is.

    Args:
        given: what the view is given; None for axes at either end that it does not name.
        before: the sizes of what it reads.
        shape: these sizes as numbers.
        known: what other views told already; gets what is found here.
    """
    if before and len(before) != len(shape):
        return None
    for size, count in sorted(zip(before, shape, strict=False), key=lambda pair: sum(n for _, n in pair[0].of)):
        factors = sorted((s for s, n in size.of for _ in range(n)), key=str)
        whole = size.number
        for factor in factors[:-1]:
            whole *= known.setdefault(factor, 1)
        if factors and factors[-1] not in known and whole and count % whole == 0:
            known[factors[-1]] = count // whole
    first = next((i for i, s in enumerate(given) if s is not None), 0)
    kept = [shape[i if i < first else i - len(given)] if s is None else s for i, s in enumerate(given)]
    found = [s if isinstance(s, int) else _value(s, known) for s in kept]
    return [s for s in found if s is not None] if None not in found else None


def steps(views: Sequence[View]) -> int:
    """A number of positions, and of samples, that is divisible by whatever these views divide by."""
    found = 1
    for view in views:
        for size in view.given[1] if view.given is not None else ():
            by = [s.by.number for s, _ in size.of if isinstance(s, Floor)] if isinstance(size, Size) else []
            found = lcm(found, *by, size.number if isinstance(size, Size) else 1)
    return found


def _value(size: Size, known: dict[Any, int]) -> int | None:
    value = size.number
    for symbol, power in size.of:
        parts = [_value(s, known) for s in (symbol.whole, symbol.by)] if isinstance(symbol, Floor) else []
        if parts and parts[0] is not None and parts[1]:
            known[symbol] = parts[0] // parts[1]
        if symbol not in known:
            return None
        value *= known[symbol] ** power
    return value
