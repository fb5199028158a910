"""Candidates: one forward pass over the graph that keeps for every value its forms over earlier values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from reptool.algebra.kernel import IDENTITY, identity
from reptool.ir.aliasing import Reads
from reptool.ir.nodes import MADE_LIKE, metadata_read, name_of, only_asserted
from reptool.ir.ops import Affine, Fill, HandedOn, Op, Pieces, Reduced, Stack, Sum, View
from reptool.ir.spec import check_ops
from reptool.lift import Context, lift
from reptool.lift.ranks import rank_held
from reptool.lift.segments import segments
from reptool.passages import Passage, passage
from reptool.passages.own_affines import Behind, OwnAffines, rerouted
from reptool.passages.spread import Spread
from reptool.plan.cost import DEFAULT, Costs, Size, nominal_size, out_size
from reptool.plan.forms import Form, arranged, chained, joined, side_by_side, start, summed, through
from reptool.plan.inference.facts import Facts
from reptool.plan.resolutions.joined import joined_at
from reptool.plan.terms import Group, Tree, regroup
from reptool.refusal import Code, Refusal

MAX_FORMS = 12


@dataclass
class Analysis:
    """What one trace holds for the planner."""

    graph: fx.Graph
    reads: Reads
    facts: Facts
    costs: Costs = DEFAULT
    ops: dict[fx.Node, Op] = field(default_factory=dict)
    forms: dict[fx.Node, dict[fx.Node, Form]] = field(default_factory=dict)
    refused: dict[fx.Node, Refusal] = field(default_factory=dict)
    wanted: set[fx.Node] = field(default_factory=set)
    soft: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    sizes: dict[fx.Node, Size] = field(default_factory=dict)
    spreads: Sequence[Spread] = ()
    shares: dict[fx.Node, Spread] = field(default_factory=dict)
    passages: dict[fx.Node, Passage] = field(default_factory=dict)
    own: dict[fx.Node, Behind] = field(default_factory=dict)
    """By the nodes that stand for them: the scales and shifts of norms that stay."""
    instead: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Values behind which they stand, with the node that others read in the place of each."""
    bare: dict[fx.Node, Behind] = field(default_factory=dict)
    passed: set[fx.Node] = field(default_factory=set)
    """Views and pieces of what is not scaled yet."""
    ranks: dict[fx.Node, int] = field(default_factory=dict)  # of the inputs of operations that mean another at others
    sums: dict[fx.Node, Tree] = field(default_factory=dict)  # by their last addition: those of which a part may merge
    groups: dict[fx.Node, Group] = field(default_factory=dict)  # by their value
    several: bool = False  # whether a layer may read values of several resolutions


def analyse(
    graph: fx.Graph,
    reads: Reads,
    facts: Facts,
    blocked: dict[fx.Node, Refusal],
    escaped: Iterable[fx.Node],
    values: bool,
    spreads: Sequence[Spread] = (),
    affines: OwnAffines | None = None,
    costs: Costs = DEFAULT,
    several: bool = False,
) -> Analysis:  # long: one pass over all nodes
    """Lift every node and keep the forms of every value.

    Args:
        graph: the captured graph.
        reads: its resolved reads.
        facts: its facts; `facts.ops` is filled here.
        blocked: nodes that must stay as they are, and why.
        escaped: nodes kept by somebody outside the graph.
        values: whether values may be looked at (not on the meta device).
        spreads: norms that are given to the parts of what they read.
        affines: norms whose scale and shift may go into what reads them.
        costs: the numbers of the price.
        several: whether a layer may read values of several resolutions.
    """
    found = Analysis(graph, reads, facts, costs, facts.ops, spreads=spreads, several=several)
    norms = {s.norm for s in spreads}
    facts.ops.clear()
    ctx = Context(
        facts.constant, facts.exact, reads.of, facts.rank, facts.channels, facts.cone, facts.behind, facts.dtype,
        facts.stated_rank, facts.ops, facts.opaque, facts.taken, facts.width_expected,
        facts.unsure, facts.own, facts.active,
    )  # fmt: skip
    known = segments(graph, facts, reads, values)
    for node in graph.nodes:
        refusal = blocked.get(node)
        op = None
        if refusal is None:
            if node in reads.partial:
                refusal = Refusal(Code.MUTATED, "a value is written in place while a view of it is read", (node.name,))
            else:
                _add_passage(found, node, ctx)
                ctx.asked = False
                lifted = known[node] if node in known else lift(node, ctx)
                if ctx.asked and lifted is not None and not isinstance(lifted, Refusal):
                    held = rank_held(node, lifted, ctx, lift)
                    if held is not None:
                        found.ranks[node] = held
                if isinstance(lifted, Refusal):
                    refusal = lifted
                else:
                    op = lifted
                    if isinstance(op, Affine) and op.left is not None:
                        found.refused[node] = op.left
        if refusal is not None:
            found.refused[node] = refusal
        if isinstance(op, Affine) and node in norms:
            op = HandedOn(op.source, IDENTITY, identity)
        if op is not None:
            for spread in spreads:
                op = spread.rerouted(node, op)
            op = rerouted(op, found.instead) if found.instead and node not in found.passed else op
            found.ops[node] = op
            if isinstance(op, Affine):
                found.wanted.update(op.beside)
            _extend(found, node, op, values)
        else:
            _want_all(found, node)
        found.sizes[node] = _size(found, node, op)
        _add_shares(found, node, values)
        if affines is not None and refusal is None:
            for behind in affines.at(node, op, ctx):
                _add_affine(found, behind, node, values)
    found.wanted.update(found.instead.get(n, n) for n in escaped)
    found.wanted.update(n for n in found.ops if not reads.readers.get(n))  # unused, and computed all the same
    check_ops(graph, found.ops)
    regroup(found, lambda node, op: _extend(found, node, op, values))
    return found


def _add_passage(found: Analysis, node: fx.Node, ctx: Context) -> None:
    """An operation that treats all channels alike, and reads nothing but one value and sizes that are known."""
    made = passage(node, ctx)
    if made is None or node in found.reads.mutates:
        return
    others = [n for n in node.all_input_nodes if not n.meta["const"] and found.reads.of(node, n) is not made.source]
    if all(n.meta.get("kind") in ("size", "number") for n in others):
        found.passages[node] = made


def _add_shares(found: Analysis, node: fx.Node, values: bool) -> None:
    """The shares that stand right behind a value."""
    position = found.reads.position
    for spread in found.spreads:
        for leaf, share, op in zip(spread.leaves, spread.shares, spread.ops, strict=True):
            if leaf is not node:
                continue
            found.ops[share], found.shares[share] = op, spread
            position[share] = (position[leaf] + int(position[leaf] + 1)) / 2
            found.sizes[share] = found.sizes[leaf]
            _extend(found, share, op, values)
            node = share  # the next one stands behind it
            break


def _add_affine(found: Analysis, behind: Behind, at: fx.Node, values: bool) -> None:
    """The scale and shift of a norm, right behind a value."""
    node, reads = behind.nodes[at], found.reads
    op = behind.ops[node]
    found.ops[node], found.own[node], found.instead[at], found.bare[behind.norm] = op, behind, node, behind
    found.passed |= behind.passed
    reads.position[node] = (reads.position[at] + int(reads.position[at] + 1)) / 2
    reads.readers[node] = list(reads.readers.get(at, ()))
    found.sizes[node] = found.sizes[at]
    if not reads.readers[node]:
        found.wanted.add(node)
    _extend(found, node, op, values)


def out_of_reach(found: Analysis, rejected: Mapping[fx.Node, Mapping[frozenset[fx.Node], object]]) -> set[fx.Node]:
    """The scales and shifts of norms that some reader brings to no layer: what every plan would compute.

    Args:
        found: what was found.
        rejected: by the value, forms that no layer may take, by their operations.
    """
    if not found.own:
        return set()
    readers: dict[fx.Node, set[fx.Node]] = {n: set() for n in found.own}
    for node, op in found.ops.items():
        for source in readers.keys() & set(op.sources) if "parts" not in node.meta else ():
            readers[source].add(node)
    for value, forms in found.forms.items():
        for form in forms.values():
            taken = readers.keys() & form.ops
            if (
                taken
                and form.ops not in rejected.get(value, ())
                and any(map(_is_layer, (found.ops[n] for n in form.ops)))
            ):
                for node in taken:
                    readers[node] -= form.ops
    return {n for n, left in readers.items() if left}


def _want_all(found: Analysis, node: fx.Node) -> None:
    for read in node.all_input_nodes:
        seen = found.reads.of(node, read)
        value = read if seen is None else seen
        for spread in found.spreads:
            value = spread.instead(node, value)
        if (
            metadata_read(node)
            or _only_measured(node)
            or (name_of(node) in MADE_LIKE and node.args and node.args[0] is not read)
        ):
            if not only_asserted(node):
                found.soft.setdefault(value, []).append(node)
        else:
            found.wanted.add(found.instead.get(value, value))


def _only_measured(node: fx.Node) -> bool:
    """Whether this is ``x.data`` of which nothing but sizes is read."""
    return node.target is getattr and node.args[1] == "data" and all(map(metadata_read, node.users))


def _size(found: Analysis, node: fx.Node, op: Op | None) -> Size:
    if isinstance(op, Affine):
        size = found.sizes.get(op.source, ())
        if op.shape.axes and len(size) != len(op.shape.axes):
            size = nominal_size(len(op.shape.axes))
        return out_size(op.shape, size) if not op.moves or op.resampling is None else op.resampling.out_size(size)
    if op is not None:
        return found.sizes.get(op.sources[0], ())
    return nominal_size(2)


def _is_layer(op: Op) -> bool:
    return isinstance(op, Affine) and op.layer


def _regroup(found: Analysis, node: fx.Node, made: dict[fx.Node, Form], values: bool) -> None:
    """Forms that come about only from behind: a border that the layer in front would see is cropped away here."""
    for middle, outer in list(made.items()):
        for root, inner in found.forms.get(middle, {}).items():
            if root not in made and outer.is_plain and inner.is_plain:
                new = chained(outer, inner, values)
                if not isinstance(new, Refusal):
                    made[root] = new


def _filled(found: Analysis, node: fx.Node) -> frozenset[fx.Node]:
    """The padding and the item assignments in front of one that completes it."""
    out: set[fx.Node] = set()
    op = found.ops[node]
    while isinstance(op, Fill):
        out.add(op.source)
        op = found.ops[op.source]
    return frozenset(out)


def _made_by(found: Analysis, op: Affine) -> frozenset[fx.Node]:
    """The nodes between an element of a sequence and the value that the element is a map of."""
    out: set[fx.Node] = set()
    node = op.via
    while node is not None and node is not op.source:
        out.add(node)
        made = found.ops.get(node)
        node = made.source if isinstance(made, Pieces) else None
    return frozenset(out)


def forms_of(found: Analysis, node: fx.Node) -> dict[fx.Node, Form]:
    """Every form of a value, the identity of itself among them."""
    return {**found.forms.get(node, {}), node: start(node)}


def _extend(found: Analysis, node: fx.Node, op: Op, values: bool) -> None:  # long: a law for each sort of operation
    made: dict[fx.Node, Form] = {}
    first: Refusal | None = None
    if isinstance(op, (Stack, Pieces)) or (isinstance(op, Fill) and op.whole is None):
        return
    if isinstance(op, Fill):
        assert op.whole is not None
        between = _filled(found, node)
        for root, form in forms_of(found, op.whole.source).items():
            new = through(node, op.whole, form, values)
            if isinstance(new, Refusal):
                first = first or new
            else:
                made[root] = replace(new, ops=new.ops | between)
    elif isinstance(op, (Affine, View)):
        alone = isinstance(op, Affine) and bool(op.beside)
        for root, form in ({op.source: start(op.source)} if alone else forms_of(found, op.source)).items():
            if isinstance(op, View) and not any(_is_layer(found.ops[n]) for n in form.ops):
                continue  # views stay where they are: behind the layer
            new = through(node, op, form, values) if isinstance(op, Affine) else arranged(node, op, form)
            if isinstance(new, Refusal):
                first = first or (None if form.around else new)  # it said itself why it is no kernel
            else:
                made[root] = new
        if isinstance(op, Affine) and any(a.before < 0 or a.after < 0 for a in op.shape.axes or ()):
            _regroup(found, node, made, values)
    else:
        whole = op.whole if isinstance(op, Reduced) else op
        sets = [forms_of(found, s) for s in whole.sources]
        common = [r for r in sets[0] if all(r in s for s in sets)]
        for root in common:
            forms = [s[root] for s in sets]
            if isinstance(whole, Sum):
                new = summed(node, whole, forms)
            else:
                new = joined(node, whole, forms, found.facts.channels_expected(node))
            if isinstance(op, Reduced) and not isinstance(new, Refusal):
                new = replace(new, ops=new.ops | {op.source})
            if isinstance(new, Refusal):
                first = first or new
            else:
                made[root] = new
    if isinstance(op, Affine) and op.inner:
        made = {root: replace(form, ops=form.ops.union(op.inner)) for root, form in made.items()}
    if isinstance(op, Affine) and op.via is not None:
        made = {root: replace(form, ops=form.ops | _made_by(found, op)) for root, form in made.items()}
    side = joined_at(node, op, found.ops, found.facts, found.reads) if found.several else None
    held = None if side is None else made.get(side.root)
    if side is not None and (held is None or (held.around and not found.facts.recorder.guarded)):
        made[side.root] = replace(side_by_side(side), other=held)
    if first is not None and not isinstance(op, View):
        found.refused.setdefault(node, first.at(node.name))
    if len(made) > MAX_FORMS:
        made = dict(list(made.items())[-MAX_FORMS:])
    found.forms[node] = made
