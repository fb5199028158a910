"""Selection: which values become one layer, priced as whole regions, island by island.

From the values that are needed back, the cheapest way to compute each: as it stands, or as one layer of an earlier
value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.ir.ops import Affine, Op
from reptool.ir.shapes import keeps_shape
from reptool.plan.candidates import Analysis
from reptool.plan.cost import Price, Size, layer_price, nominal_size, op_price
from reptool.plan.forms import Form
from reptool.refusal import Code, Refusal

MAX_ROUNDS = 3
FORCED = 1e15
ALONE = ("avg_pool", "bn")  # what becomes a convolution of its own when it is forced to


@dataclass(eq=False)
class Region:
    """One value computed by one layer.

    Args:
        value: the node whose value the layer computes.
        form: what it computes, of which earlier value.
        before: price of what it replaces.
        after: price of the layer.
    """

    value: fx.Node
    form: Form
    before: Price
    after: Price

    @property
    def root(self) -> fx.Node:
        """The value the layer reads."""
        return self.form.root


Choice = dict[fx.Node, fx.Node | None]


class Chooser:
    """Chooses, island by island, the cheapest way to compute every wanted value.

    With `force` the fewest operations are the cheapest; one that is no layer counts twice.
    """

    def __init__(self, found: Analysis, allowed: Callable[[fx.Node, Form], Refusal | None], force: bool) -> None:
        self.found, self.allowed, self.force = found, allowed, force
        self.best: dict[fx.Node, float] = {}
        self._standing: dict[fx.Node, Price] = {}
        self._fused: dict[Form, Price] = {}
        self.options: dict[fx.Node, dict[fx.Node, Form]] = {}
        self._all = self._islands()
        self._home = {node: i for i, island in enumerate(self._all) for node in island}
        self._chosen_in: dict[int, list[Region]] = {}

    def regions(self) -> list[Region]:
        """The chosen regions of all islands, in graph order; an island that was chosen is not chosen again."""
        for i, island in enumerate(self._all):
            if i not in self._chosen_in:
                self._chosen_in[i] = self._island(island)
        position = self.found.reads.position
        return sorted((r for held in self._chosen_in.values() for r in held), key=lambda r: position[r.value])

    def island_of(self, value: fx.Node) -> int:
        """The number of the island in which a value lies."""
        return self._home[value]

    def choose_again(self, island: int) -> None:
        """Forget what was chosen in an island: what is allowed there has changed."""
        self._chosen_in.pop(island, None)
        for node in self._all[island]:
            self.best.pop(node, None)
            self.options.pop(node, None)

    def give_up(self, island: int) -> list[fx.Node]:
        """Leave an island as it is; the values that would have been layers in it."""
        values = [r.value for r in self._chosen_in.get(island, ())]
        self._chosen_in[island] = []
        return values

    def _islands(self) -> list[list[fx.Node]]:
        parent: dict[fx.Node, fx.Node] = {n: n for n in self.found.ops}

        def find(n: fx.Node) -> fx.Node:
            while parent[n] is not n:
                parent[n] = parent[parent[n]]
                n = parent[n]
            return n

        for node, op in self.found.ops.items():
            for source in op.sources:
                if source in parent:
                    parent[find(node)] = find(source)
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in self.found.ops:
            groups.setdefault(find(node), []).append(node)
        return [
            g
            for g in groups.values()
            if any(isinstance(op, Affine) and (op.layer or self.force) for op in map(self.found.ops.get, g))
        ]

    def _candidates(self, node: fx.Node) -> dict[fx.Node, Form]:
        if node not in self.options:
            found: dict[fx.Node, Form] = {}
            nearest_first = sorted(self.found.forms.get(node, {}).items(), key=lambda item: len(item[1].ops))
            for root, form in nearest_first:
                if not self._worth(form):
                    continue
                if form.shape.channels is None:
                    known = self._with_channels(node, form)
                    if isinstance(known, Refusal):
                        self.found.refused.setdefault(node, known)
                        continue
                    form = known
                refusal = (None if self.force else self._grows(node, form)) or self.allowed(node, form)
                if refusal is None:
                    found[root] = form
                elif not _hands_on(self.found.ops[node]):
                    self.found.refused.setdefault(node, refusal)
            self.options[node] = found
        return self.options[node]

    def _worth(self, form: Form) -> bool:
        """Whether a form is a layer at all, and another one than what stands."""
        ops = [op for op in map(self.found.ops.get, form.ops) if isinstance(op, Affine)]
        layers = [op for op in ops if op.layer]
        if not layers:
            return self.force and any(op.paradigm in ALONE for op in ops)
        if len(form.ops) == 1:
            return layers[0].computed and not self.found.facts.only_follows(next(iter(form.ops)))
        return form.shape.channels is not None

    def _grows(self, node: fx.Node, form: Form) -> Refusal | None:
        """More weights for no fewer multiplications: a pooling folded into a pointwise convolution, say.

        What is saved there (an intermediate value, an operation) depends on the size of the image, and what it costs
        does not: it is taken where the size is known and it pays at that size.
        """
        old, new = self._standing_of(form), self._layer(form)
        if new.weights <= old.weights or new.multiplications < old.multiplications:
            return None
        if new.multiplications > old.multiplications or not form.shape.axes:
            return self._dearer(node, form)
        shape = self.found.facts.shape(form.root)
        if shape is None:
            sentence = (
                f"one layer in place of {len(form.ops)} operations would hold {new.weights:,} weights instead of "
                f"{old.weights:,} for as many multiplications; whether that pays depends on the size of the image: "
                "give example_inputs"
            )
            return Refusal(Code.DEARER, sentence, (node.name,))
        old = sum((self._price_as_is(n, self._seen_size(n)) for n in form.ops), Price())
        new = layer_price(form.shape, shape[-len(form.shape.axes) :])
        return None if new.total < old.total else _dearer(node, form, old, new, " at the size of example_inputs")

    def _seen_size(self, node: fx.Node) -> Size | None:
        """The size of the image that an operation reads in the example."""
        op = self.found.ops[node]
        shape = self.found.facts.shape(op.sources[0])
        axes = len(op.shape.axes or ()) if isinstance(op, Affine) else 0
        return None if shape is None else shape[-axes:] if axes else shape[2:]

    def _with_channels(self, node: fx.Node, form: Form) -> Form | Refusal:
        """A form of poolings alone on as many channels as its value has."""
        axes = len(form.shape.axes or ())
        count = self.found.facts.channels(node, axes) or self._channels_by_readers(node, axes)
        if count is None:
            return Refusal(Code.CHANNELS, "how many channels this has is not known; give example_inputs", (node.name,))

        def make() -> Kernel | Refusal:
            kernel = form.kernel()
            return kernel if isinstance(kernel, Refusal) else kernel.with_channels(count)

        return Form(form.root, form.shape.with_channels(count), form.ops, make, form.layout)

    def _cost(self, price: Price) -> float:
        return price.total + FORCED * (price.layers + 2 * price.others) if self.force else price.total

    def _as_is(self, node: fx.Node) -> Price:
        if node not in self._standing:
            self._standing[node] = self._price_as_is(node)
        return self._standing[node]

    def _standing_of(self, form: Form) -> Price:
        return sum(map(self._as_is, form.ops), Price())

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
        return op_price(op, size, channels)

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

    def _layer(self, form: Form) -> Price:
        if form not in self._fused:
            self._fused[form] = self._price_layer(form)
        return self._fused[form]

    def _price_layer(self, form: Form) -> Price:
        size = self.found.sizes.get(form.root, ())
        if form.shape.axes and len(size) != len(form.shape.axes):
            size = nominal_size(len(form.shape.axes))
        return layer_price(form.shape, size)

    def _tree(self, node: fx.Node) -> float:
        """Price of a value when nothing is shared."""
        if node not in self.found.ops:
            return 0.0
        if node not in self.best:
            op = self.found.ops[node]
            price = self._cost(self._as_is(node)) + sum(self._tree(s) for s in op.sources)
            for root, form in self._candidates(node).items():
                price = min(price, self._cost(self._layer(form)) + self._tree(root))
            self.best[node] = price
        return self.best[node]

    def _island(self, island: list[fx.Node]) -> list[Region]:
        order = island[::-1]
        wanted = {n for n in island if n in self.found.wanted}
        base = self._total(order, wanted, {})
        greedy = self._greedy(order, wanted)
        starts: list[Choice] = [greedy]
        if self._total(order, wanted, greedy).multiplications > base.multiplications:
            starts.append({})  # it paid for a layer twice: climb from what stands as well
        choice, best = greedy, None
        for begin in starts:
            reached, price = self._improved(order, wanted, begin, base)
            if best is None or self._better(price, best, base):
                choice, best = reached, price
        assert best is not None
        if not self._better(best, base, base):
            self._note_dearer(island, choice)
            return []
        return self._chosen(order, wanted, choice)

    def _improved(
        self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice, base: Price
    ) -> tuple[Choice, Price]:
        """Change one value's choice at a time as long as it pays."""
        best = self._total(order, wanted, choice)
        for _ in range(MAX_ROUNDS):
            improved = False
            for node in order:
                for option in (None, *self._candidates(node)):
                    if choice.get(node) is option:
                        continue
                    trial = {**choice, node: option}
                    price = self._total(order, wanted, trial)
                    if self._better(price, best, base):
                        choice, best, improved = trial, price, True
            if not improved or len(order) > 200:
                break
        return choice, best

    def _better(self, new: Price, old: Price, base: Price) -> bool:
        if self.force:
            first_new, first_old = new.layers + 2 * new.others, old.layers + 2 * old.others
        else:
            first_new, first_old = (max(p.multiplications - base.multiplications, 0) for p in (new, old))
        return (first_new, new.total) < (first_old, old.total * (1 - 1e-9))

    def _note_dearer(self, island: list[fx.Node], choice: Choice) -> None:
        for node in island:
            forms = [f for f in self._candidates(node).values() if len(f.ops) > 1 or choice.get(node) is f.root]
            if not forms:
                continue
            widest = max(forms, key=lambda f: len(f.ops))
            refusal = None if _hands_on(self.found.ops[node]) else self.dearer_than(node, widest)
            if refusal is not None:  # not one layer and what costs nothing
                self.found.refused.setdefault(node, refusal)

    def dearer_than(self, node: fx.Node, form: Form) -> Refusal | None:
        """Why a form as one layer is dearer than what stands; None where it is not."""
        before, after = self._standing_of(form), self._layer(form)
        cheaper = after.total <= before.total and after.multiplications <= before.multiplications
        return None if cheaper else _dearer(node, form, before, after)

    def _dearer(self, node: fx.Node, form: Form) -> Refusal:
        return _dearer(node, form, self._standing_of(form), self._layer(form))

    def _greedy(self, order: list[fx.Node], wanted: set[fx.Node]) -> Choice:
        choice: Choice = {}
        needed = set(wanted)
        for node in order:
            if node not in needed:
                continue
            op = self.found.ops[node]

            def rest(n: fx.Node) -> float:
                return 0.0 if n in needed else self._tree(n)

            best = self._cost(self._as_is(node)) + sum(map(rest, dict.fromkeys(op.sources)))
            pick: fx.Node | None = None
            for root, form in self._candidates(node).items():
                price = self._cost(self._layer(form)) + rest(root)
                if price < best:
                    best, pick = price, root
            choice[node] = pick
            needed.update([pick] if pick is not None else op.sources)
        return choice

    def _needed(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> list[tuple[fx.Node, Form | None]]:
        needed, out = set(wanted), []
        for node in order:
            if node not in needed:
                continue
            root = choice.get(node)
            form = None if root is None else self._candidates(node).get(root)
            out.append((node, form))
            needed.update(self.found.ops[node].sources if form is None else [form.root])
        return out

    def _total(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> Price:
        total = Price()
        for node, form in self._needed(order, wanted, choice):
            total = total + (self._as_is(node) if form is None else self._layer(form))
        return total

    def _chosen(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> list[Region]:
        pairs = self._needed(order, wanted, choice)
        alive = {node for node, form in pairs if form is None}
        regions = []
        for node, form in pairs:
            if form is None:
                continue
            before = Price()
            for op in form.ops - alive:
                before = before + self._as_is(op)
            regions.append(Region(node, form, before, self._layer(form)))
        return regions


def _hands_on(op: Op) -> bool:
    """Whether an operation gives what it reads: what is refused is what stands in front of it."""
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.layer


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
