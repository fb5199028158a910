"""Terms: what a sum adds up, however it is written, and which of its terms may become one layer.

::

    y  =  b + sum_r K_r(r)  =  sum over groups of terms

An addition that only another one reads is a part of that one: a tree of additions is one sum, and in which order and
grouping its terms are added decides nothing. A *group* is several terms that are maps of one earlier value. It is a
value of its own, computed by the additions once more, with these terms alone. Where a group becomes a layer, the layer
stands in the place of one of its terms and the others are left out of the additions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from reptool.algebra.compose import compose
from reptool.algebra.kernel import IDENTITY, Kernel, identity
from reptool.algebra.laws import add
from reptool.ir.ops import Affine, Op, Sum
from reptool.plan.cost import Price, layer_price, op_price
from reptool.plan.forms import Form, start
from reptool.refusal import Refusal

if TYPE_CHECKING:
    from reptool.plan.candidates import Analysis

MAX_TERMS = 16
"""Of one root in one sum: where there are more, groups of some of them are not looked for."""
Terms = frozenset[fx.Node]


@dataclass(eq=False)
class Tree:
    """One sum: additions that are read by each other alone.

    Args:
        top: the addition that gives the sum.
        ops: each addition, and each identity between two of them, with what it is.
        terms: what is added.
        groups: terms that may become one layer.
    """

    top: fx.Node
    ops: dict[fx.Node, Sum | Affine]
    terms: list[fx.Node]
    groups: list[Group] = field(default_factory=list)

    @cached_property
    def below(self) -> dict[fx.Node, Terms]:
        """The terms that each addition adds up, and of each term itself."""
        found = {t: frozenset((t,)) for t in self.terms}
        for node in reversed(self.ops):
            found[node] = frozenset[fx.Node]().union(*(found[s] for s in self.ops[node].sources))
        return found

    def scale(self, node: fx.Node, source: fx.Node) -> Kernel | None:
        """The number by which an addition multiplies an operand; None for one."""
        op = self.ops[node]
        return op.maps[op.sources.index(source)] if isinstance(op, Sum) else None

    def maps(self, top: fx.Node | None = None) -> dict[fx.Node, Kernel | None]:
        """What each addition and term goes through on its way to the sum, or to an addition; None for nothing."""
        out: dict[fx.Node, Kernel | None] = {self.top if top is None else top: None}
        for node, op in self.ops.items():
            for source in op.sources if node in out else ():
                behind, own = out[node], self.scale(node, source)
                out[source] = own if behind is None else behind if own is None else _scaled(behind, own)
        return out

    def handed_on(self, node: fx.Node) -> list[fx.Node]:
        """What an identity between two additions gives."""
        op = self.ops.get(node)
        return [op.source] if isinstance(op, Affine) else []

    def without(self, gone: Collection[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
        """The additions that do not stand as they are without these terms, and what is left of the operands of each."""
        left = {n: [s for s in op.sources if not self.below[s] <= set(gone)] for n, op in self.ops.items()}
        return {n: kept for n, kept in left.items() if len(kept) < len(self.ops[n].sources)}

    def rest(self, groups: Collection[Group]) -> list[tuple[fx.Node, float]]:
        """What is added to these groups, and how often: terms, and sums of none of the groups' terms.

        A term that stands in several places is there several times, each with the number of its place.
        """
        taken = frozenset[fx.Node]().union(*(g.terms for g in groups))

        def walk(node: fx.Node, number: float) -> Iterator[tuple[fx.Node, float]]:
            op = self.ops[node]
            for source, by in zip(op.sources, op.maps if isinstance(op, Sum) else [None], strict=True):
                if not self.below[source] & taken:
                    yield source, number * as_number(by)
                elif source in self.ops:
                    yield from walk(source, number * as_number(by))

        return list(walk(self.top, 1.0))

    def families(self) -> Iterator[tuple[Group, ...]]:
        """Groups that may be layers at once."""
        for count in (1, 2, 3):
            for some in combinations(self.groups, count):
                if sum(len(g.terms) for g in some) == len(frozenset[fx.Node]().union(*(g.terms for g in some))):
                    yield some


@dataclass(eq=False)
class Group:
    """Some terms of a sum.

    Args:
        tree: the sum.
        terms: the terms.
        top: the addition that holds them all.
        value: their sum, divided by the number by which it enters that addition.
        parts: each addition that holds some of them -> the same one with these terms alone.
        by: that number, of one of the terms; None for one.
    """

    tree: Tree
    terms: Terms
    top: fx.Node
    value: fx.Node
    parts: dict[fx.Node, fx.Node]
    by: Kernel | None = None

    @property
    def number(self) -> float:
        """The number by which the value enters the whole sum."""
        return as_number(self.tree.maps()[self.top]) * as_number(self.by)

    def stands_at(self, term: fx.Node) -> bool:
        """Whether what stands in the place of this term enters the sum as the value has to."""
        return as_number(self.tree.maps(self.top)[term]) == as_number(self.by)


# --- the sums of a graph --------------------------------------------------------------------------------------------
def trees(found: Analysis) -> list[Tree]:
    """The sums of three terms and more."""
    out = []
    for top, op in found.ops.items():
        if isinstance(op, Sum) and _is_member(op) and not _is_added(found, top):
            tree = Tree(top, {}, [])
            _grow(found, tree, top)
            if len(tree.terms) > 2:
                out.append(tree)
    return out


def _grow(found: Analysis, tree: Tree, node: fx.Node) -> None:
    op = found.ops[node]
    assert isinstance(op, (Sum, Affine))
    tree.ops[node] = op
    for source in op.sources:
        if _holds_sum(found, source):
            _grow(found, tree, source)
        else:
            tree.terms.append(source)


def _is_added(found: Analysis, node: fx.Node) -> bool:
    """Whether a value is read by one addition alone, maybe behind identities."""
    reader = _only_reader(found, node)
    while reader is not None and isinstance(found.ops[reader], Affine):
        reader = _only_reader(found, reader)
    return reader is not None


def _holds_sum(found: Analysis, node: fx.Node) -> bool:
    """Whether a value that is added is a sum itself, maybe handed on by identities, and read by nothing else."""
    op = found.ops.get(node)
    while _only_reader(found, node) is not None and isinstance(op, Affine) and _is_member(op):
        node = op.source
        op = found.ops.get(node)
    return isinstance(op, Sum) and _is_member(op) and _only_reader(found, node) is not None


def _is_member(op: Op | None) -> bool:
    if isinstance(op, Sum):
        numbers = all(m is None or m.channels is None for m in op.maps)
        return numbers and not op.owners and len(op.sources) == 2
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.owners and op.via is None


def _only_reader(found: Analysis, node: fx.Node) -> fx.Node | None:
    """The one addition or identity that reads a value, where nothing else does, not even its shape."""
    readers = found.reads.readers.get(node, ())
    if node in found.wanted or len(readers) != 1:
        return None
    op = found.ops.get(readers[0])
    return readers[0] if op is not None and _is_member(op) and op.sources.count(node) == 1 else None


# --- groups ---------------------------------------------------------------------------------------------------------
def regroup(found: Analysis, extend: Callable[[fx.Node, Op], None]) -> None:
    """Find the groups of every sum, with the forms of each.

    Args:
        found: what was found; groups become values of it.
        extend: finds the forms of a value.
    """
    graph = fx.Graph()
    for tree in trees(found):
        for terms, layers in _candidates(found, tree).items():
            group = _group(found, tree, terms, layers, graph, extend)
            tree.groups.append(group)
            found.groups[group.value] = group
        if tree.groups:
            found.sums[tree.top] = tree


def _candidates(found: Analysis, tree: Tree) -> dict[Terms, Terms]:
    """Terms of one root that cost less as one layer, and all that can be one; not those that the code adds alone.

    Returns:
        The terms of each group, and which of them end in layers.
    """
    maps = tree.maps()
    known = set(tree.below.values())
    out: dict[Terms, Terms] = {}
    roots = dict.fromkeys(r for t in tree.terms for r in (*found.forms.get(t, {}), t))
    for root in roots:
        shapes: dict[fx.Node, tuple[Form, Kernel]] = {}
        for term in (t for t in tree.terms if tree.terms.count(t) == 1):
            form = start(root) if term is root else found.forms.get(term, {}).get(root)
            shape = None if form is None or not form.is_plain else _mapped(maps[term], form.shape)
            if form is not None and isinstance(shape, Kernel):
                shapes[term] = (form, shape)
        layers = {t for t, (form, _) in shapes.items() if any(map(_is_layer, map(found.ops.get, form.ops)))}
        for terms in _cheaper(found, root, shapes):
            if terms not in known and terms & layers:
                out[terms] = terms & layers
    return out


def _cheaper(found: Analysis, root: fx.Node, shapes: dict[fx.Node, tuple[Form, Kernel]]) -> Iterator[Terms]:
    """Join the two whose sum saves most, as long as one does and mixes channels no more often; then all.

    Two that are one need no addition.
    """
    addition = max((_addition(found, t, shape) for t, (_, shape) in shapes.items()), default=0.0)
    prices: dict[Terms, Price | None] = {}

    def price(terms: Terms) -> Price | None:
        if terms not in prices:
            whole = add([shapes[t][1] for t in shapes if t in terms])
            layer = None if isinstance(whole, Refusal) else layer_price(whole, found.sizes.get(root, ()), found.costs)
            stands = _stands(found, *shapes[next(iter(terms))]) if len(terms) == 1 else None
            prices[terms] = min((p for p in (layer, stands) if p is not None), key=lambda p: p.total, default=None)
        return prices[terms]

    def saves(pair: tuple[Terms, Terms]) -> float:
        one, other, both = price(pair[0]), price(pair[1]), price(pair[0] | pair[1])
        if one is None or other is None or both is None or both.mixing > one.mixing + other.mixing:
            return 0.0
        return one.total + other.total + addition - both.total

    parts = [frozenset((t,)) for t in shapes]
    while 1 < len(parts) <= MAX_TERMS:
        pair = max(combinations(parts, 2), key=saves)
        if saves(pair) <= 0:
            break
        parts = [p for p in parts if p not in pair] + [pair[0] | pair[1]]
        yield parts[-1]
    if len(shapes) > 1 and price(frozenset(shapes)) is not None:
        yield frozenset(shapes)


def _addition(found: Analysis, term: fx.Node, shape: Kernel) -> float:
    both = Sum([term, term], [None, None])
    return op_price(both, found.sizes.get(term, ()), shape.out_channels, found.costs).total


def _stands(found: Analysis, form: Form, shape: Kernel) -> Price:
    """The price of a term as it is written."""
    ops = [found.ops[n] for n in form.ops]
    at = [found.sizes.get(o.sources[0], ()) for o in ops]
    own = (op_price(o, size, shape.out_channels, found.costs) for o, size in zip(ops, at, strict=True))
    return sum(own, Price())


def _scaled(behind: Kernel, own: Kernel) -> Kernel:
    made = compose(behind, own)
    assert isinstance(made, Kernel)  # both are numbers
    return made


def _mapped(outer: Kernel | None, shape: Kernel) -> Kernel | Refusal:
    return shape if outer is None else compose(outer.shape_only(), shape)


def _is_layer(op: Op | None) -> bool:
    return isinstance(op, Affine) and op.layer


def _group(
    found: Analysis, tree: Tree, terms: Terms, layers: Terms, graph: fx.Graph, extend: Callable[[fx.Node, Op], None]
) -> Group:  # fmt: skip
    """The group of these terms, a value of the analysis."""
    parts: dict[fx.Node, fx.Node] = {}
    names = "_".join(t.name for t in tree.terms if t in terms)

    def part(node: fx.Node) -> fx.Node:
        if node in terms:
            return node
        op = tree.ops[node]
        kept = {s: part(s) for s in op.sources if tree.below[s] & terms}
        made = graph.create_node("call_function", of_some, tuple(kept.values()), name=f"{node.name}_of_{names}")
        for read in kept.values():
            read.users.pop(made, None)  # the graph that was captured stays as it is
        made.meta.update(node.meta, share=True, share_of=node, parts=kept, const=False)
        found.reads.position[made] = found.reads.position[node] - 2**-20
        found.reads.readers[made] = [tree.top]
        found.sizes[made] = found.sizes[node]
        if node in found.ranks:
            found.ranks[made] = found.ranks[node]
        found.ops[made] = _restricted(op, kept)
        extend(made, found.ops[made])
        parts[node] = made
        return made

    top = tree.top
    while (inner := next((s for s in tree.ops[top].sources if terms <= tree.below[s]), None)) is not None:
        top = inner
    value, by = part(top), _number_of(tree, top, layers)
    if by is None:
        return Group(tree, terms, top, value, parts)
    over = 1.0 / as_number(by)
    divided = graph.create_node("call_function", Divided(over), (value,), name=f"{value.name}_divided")
    value.users.pop(divided, None)
    divided.meta.update(value.meta)
    reads, kernel = found.reads, Kernel(None, None, torch.full((1, 1), over, dtype=torch.float64))
    reads.position[divided], reads.readers[divided] = reads.position[value] + 2**-21, reads.readers[value]
    found.sizes[divided] = found.sizes[value]
    if value in found.ranks:
        found.ranks[divided] = found.ranks[value]
    found.ops[divided] = Affine(value, kernel.shape_only(), lambda: kernel)
    extend(divided, found.ops[divided])
    return Group(tree, terms, top, divided, parts, by)


def _number_of(tree: Tree, top: fx.Node, layers: Terms) -> Kernel | None:
    """The number by which a layer's term enters an addition; None where one enters as it is."""
    maps = tree.maps(top)
    known = [maps[t] for t in tree.terms if t in layers]
    return None if any(as_number(m) in (1.0, 0.0) for m in known) else known[0]


def as_number(by: Kernel | None) -> float:
    """A map that is a number; one for none."""
    return 1.0 if by is None or by.weight is None else float(by.weight)


class Divided:
    """Stands for the sum of a group in the frame of one of its terms.

    Args:
        over: one over the number by which that term enters.
    """

    def __init__(self, over: float) -> None:
        self.over, self.__name__ = over, "divided"

    def __call__(self, value: Tensor) -> Tensor:
        """The sum as the layer has to give it."""
        return value * self.over


def of_some(*values: object) -> object:
    """Stands for an addition of some of its operands; verification runs the addition itself."""
    raise NotImplementedError


def _restricted(op: Sum | Affine, kept: dict[fx.Node, fx.Node]) -> Op:
    """An addition of these operands alone."""
    if isinstance(op, Affine):
        return replace(op, source=kept[op.source])
    maps = [m for s, m in zip(op.sources, op.maps, strict=True) if s in kept]
    if len(kept) > 1:
        return Sum(list(kept.values()), maps)
    (source,), own = kept.values(), maps[0]
    if own is None:
        return Affine(source, IDENTITY, identity)
    return Affine(source, own.shape_only(), lambda: own, paradigm="scale")
