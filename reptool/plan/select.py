"""Selection: which values become one layer, priced as whole regions, island by island.

From the values that are needed back, the cheapest way to compute each: as it stands, or as one layer of an earlier
value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from torch import fx

from reptool.ir.ops import Affine, Op
from reptool.plan.candidates import Analysis
from reptool.plan.cost import Price
from reptool.plan.forms import Form
from reptool.plan.pricing import Prices, Standing
from reptool.plan.rules import DEARER, rules_of
from reptool.plan.terms import Tree
from reptool.refusal import Code, Refusal

MAX_ROUNDS = 3
SMALL = 16
"""Islands of so many values are searched from two sides."""
FORCED = 1e15
ALONE = ("avg_pool", "bn")  # what becomes a convolution of its own when it is forced to
Force = bool | frozenset[str]
"""Whether dearer layers are taken: all of them, or those of the rules that are named."""


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


@dataclass(eq=False)
class Option:
    """One way to compute a value.

    Args:
        layers: values that become layers for it: itself, or groups of the terms that it adds.
        sources: what is read by what stands.
        standing: price of what stands.
    """

    layers: tuple[tuple[fx.Node, Form], ...]
    sources: list[fx.Node]
    standing: Price

    @property
    def needs(self) -> list[fx.Node]:
        """The values that are read."""
        return [*(n for _, f in self.layers for n in f.reads), *self.sources]


Choice = dict[fx.Node, Option]


class Chooser:
    """Chooses, island by island, the cheapest way to compute every wanted value.

    With ``force=True`` the fewest operations are the cheapest; one that is no layer counts twice. Where rules are
    named, a layer of these is taken as if it cost nothing.
    """

    def __init__(self, found: Analysis, allowed: Callable[[fx.Node, Form], Refusal | None], force: Force) -> None:
        self.found, self.allowed = found, allowed
        self.force, self.named = force is True, force if isinstance(force, frozenset) else frozenset[str]()
        self._is_forced: dict[Form, bool] = {}
        self.prices = Prices(found)
        self._best: dict[fx.Node, float] = {}
        self._forms: dict[fx.Node, list[Form]] = {}
        self._options: dict[fx.Node, list[Option]] = {}
        self._all = self._islands()
        self._home = {node: i for i, island in enumerate(self._all) for node in island}
        self._home |= {v: self._home[g.tree.top] for v, g in found.groups.items() if g.tree.top in self._home}
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
        for node in [n for n, i in self._home.items() if i == island]:
            for known in (self._best, self._forms, self._options):
                known.pop(node, None)

    def give_up(self, island: int) -> list[fx.Node]:
        """Leave an island as it is; the values that would have been layers in it."""
        values = [r.value for r in self._chosen_in.get(island, ())]
        self._chosen_in[island] = []
        return values

    def _islands(self) -> list[list[fx.Node]]:
        ops = {n: op for n, op in self.found.ops.items() if "parts" not in n.meta}
        parent: dict[fx.Node, fx.Node] = {n: n for n in ops}

        def find(n: fx.Node) -> fx.Node:
            while parent[n] is not n:
                parent[n] = parent[parent[n]]
                n = parent[n]
            return n

        for node, op in ops.items():
            for source in op.sources:
                if source in parent:
                    parent[find(node)] = find(source)
        groups: dict[fx.Node, list[fx.Node]] = {}
        for node in ops:
            groups.setdefault(find(node), []).append(node)
        return [
            g
            for g in groups.values()
            if any(isinstance(op, Affine) and self._begins(op) for op in map(self.found.ops.get, g))
        ]

    def _begins(self, op: Affine) -> bool:
        """Whether an island may become a layer for the sake of this operation."""
        return op.layer or op.paradigm == "avg_pool" or (op.paradigm in ALONE and (self.force or bool(self.named)))

    def _candidates(self, node: fx.Node) -> list[Form]:
        """The forms of a value that may be one layer, the nearest first."""
        if node not in self._forms:
            found = self._forms[node] = []
            own = self.found.forms.get(node, {}).values()
            every = [f for form in own for f in (form, form.other) if f is not None]
            for form in map(self.prices.placed, sorted(every, key=lambda form: len(form.ops))):
                if not self._worth(form):
                    continue
                known = form if form.shape.channels is not None else self.prices.with_channels(node, form)
                refusal = known if isinstance(known, Refusal) else self._refused(node, known)
                if refusal is None:
                    assert isinstance(known, Form)
                    found.append(known)
                elif (form.around or form.joined) and refusal.code is Code.DEARER:
                    continue  # it stands where it costs least
                elif known is refusal or not _hands_on(self.found.ops[node]):
                    self._note(node, refusal)
        return self._forms[node]

    def _refused(self, node: fx.Node, form: Form) -> Refusal | None:
        forced = self.force or self._forced(form)
        own = None if forced else self.prices.grows(node, form) or self.prices.gains_little(node, form)
        return own or self.allowed(node, form)

    def _forced(self, form: Form) -> bool:
        """Whether a form is a layer by the rules that are named, and by no other that may make it dearer."""
        if form not in self._is_forced:
            rules = rules_of(form, self.found) if self.named else frozenset[str]()
            self._is_forced[form] = bool(rules & self.named) and not (rules & DEARER) - self.named
        return self._is_forced[form]

    def _layer(self, form: Form) -> Price:
        """The price of a form as one layer, by which it is chosen."""
        return Price() if self._forced(form) else self.prices.layer(form)

    def _note(self, node: fx.Node, refusal: Refusal) -> None:
        """Keep why a value is no layer; of a group of terms, nobody asked for one."""
        if "parts" not in node.meta:
            self.found.refused.setdefault(node, refusal)

    def _ways(self, node: fx.Node) -> list[Option]:
        """As it stands, as one layer, or with groups of its terms as layers."""
        if node not in self._options:
            out = [Option((), self.found.ops[node].sources, self.prices.standing(node))]
            out += [Option(((node, form),), [], Price()) for form in self._candidates(node)]
            if node in self.found.sums:
                out += self._merging(self.found.sums[node])
            self._options[node] = out
        return self._options[node]

    def _merging(self, tree: Tree) -> Iterator[Option]:
        """Groups of a sum's terms as layers, and what is added to them."""
        for groups in tree.families():
            rest = [value for value, _ in tree.rest(groups)]
            additions = [self.prices.standing(tree.top)] * (len(rest) + len(groups) - 1)
            for forms in product(*(self._candidates(g.value) for g in groups)):
                layers = tuple((g.value, f) for g, f in zip(groups, forms, strict=True))
                yield Option(layers, rest, sum(additions, Price()))

    def _price(self, option: Option) -> Price:
        return sum((self._layer(f) for _, f in option.layers), option.standing)

    def _worth(self, form: Form) -> bool:
        """Whether a form is a layer at all, and another one than what stands."""
        ops = [op for op in map(self.found.ops.get, form.ops) if isinstance(op, Affine)]
        layers = [op for op in ops if op.layer]
        if not layers:
            if form.around or form.joined:
                return False
            held = {op.paradigm for op in ops}
            scaled_pool = "avg_pool" in held and not held.isdisjoint(("bn", "scale"))
            return scaled_pool or (not held.isdisjoint(ALONE) and (self.force or self._forced(form)))
        if len(form.ops) == 1:
            return layers[0].computed and not self.found.facts.only_follows(next(iter(form.ops)))
        return form.shape.channels is not None

    def _cost(self, price: Price) -> float:
        return price.total + FORCED * (price.layers + 2 * price.others) if self.force else price.total

    def _tree(self, node: fx.Node) -> float:
        """Price of a value when nothing is shared."""
        if node not in self.found.ops:
            return 0.0
        if node not in self._best:
            self._best[node] = min(self._cost(self._price(o)) + sum(map(self._tree, o.needs)) for o in self._ways(node))
        return self._best[node]

    def _island(self, island: list[fx.Node]) -> list[Region]:
        for node in island:  # in graph order, so that what the price of a value is made of is known already
            self.prices.standing(node)
            self._tree(node)
        order = island[::-1]
        wanted = {n for n in island if n in self.found.wanted}
        base = self._total(order, wanted, {})
        greedy = self._greedy(order, wanted)
        starts: list[Choice] = [greedy]
        paid = not self._better(self._total(order, wanted, greedy), base, base)
        if len(order) <= SMALL or paid or self._cuts(greedy):
            starts.append({})  # it may have paid for a layer twice, or for each piece of one: climb from what stands
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

    def _cuts(self, choice: Choice) -> bool:
        """Whether several layers would compute what one does."""
        taken = Counter(n for o in choice.values() for _, f in o.layers for n in f.ops if _is_layer(self.found.ops[n]))
        return any(count > 1 for count in taken.values())

    def _improved(
        self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice, base: Price
    ) -> tuple[Choice, Price]:
        """Change one value's choice at a time as long as it pays."""
        standing = Standing(order, wanted, lambda n: choice.get(n) or self._ways(n)[0], self._price)
        best = standing.price
        for _ in range(MAX_ROUNDS):
            improved = False
            for node in filter(standing.is_computed, order):
                for option in self._ways(node):
                    before = standing.way[node]
                    if before is option:
                        continue
                    standing.change(node, option)
                    if self._better(standing.price, best, base):
                        best, improved = standing.price, True
                    else:
                        standing.change(node, before)
            if not improved or len(order) > 200:
                break
        return standing.way, best

    def _better(self, new: Price, old: Price, base: Price) -> bool:
        if self.force:
            first_new, first_old = new.layers + 2 * new.others, old.layers + 2 * old.others
        else:
            first_new, first_old = (max(p.mixing - base.mixing, 0) for p in (new, old))
        return (first_new, new.total) < (first_old, old.total * (1 - 1e-9))

    def _note_dearer(self, island: list[fx.Node], choice: Choice) -> None:
        for node in island:
            picked = [f for _, f in choice[node].layers] if node in choice else []
            forms = [f for f in self._candidates(node) if len(f.ops) > 1 or f in picked]
            if not forms:
                continue
            widest = max(forms, key=lambda f: len(f.ops))
            refusal = None if _hands_on(self.found.ops[node]) else self.prices.dearer_than(node, widest)
            if refusal is not None:  # not one layer and what costs nothing
                self._note(node, refusal)

    def _greedy(self, order: list[fx.Node], wanted: set[fx.Node]) -> Choice:
        choice: Choice = {}
        needed = set(wanted)
        for node in order:
            if node not in needed:
                continue

            def price(option: Option, needed: set[fx.Node] = needed) -> float:
                fresh = dict.fromkeys(n for n in option.needs if n not in needed)
                return self._cost(self._price(option)) + sum(map(self._tree, fresh))

            choice[node] = min(self._ways(node), key=price)
            needed.update(choice[node].needs)
        return choice

    def _needed(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> list[tuple[fx.Node, Option]]:
        needed, out = set(wanted), []
        for node in order:
            if node in needed:
                out.append((node, choice.get(node) or self._ways(node)[0]))
                needed.update(out[-1][1].needs)
        return out

    def _total(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> Price:
        return sum((self._price(option) for _, option in self._needed(order, wanted, choice)), Price())

    def _chosen(self, order: list[fx.Node], wanted: set[fx.Node], choice: Choice) -> list[Region]:
        pairs = self._needed(order, wanted, choice)
        alive = {node for node, option in pairs if all(value is not node for value, _ in option.layers)}
        return [
            Region(value, form, sum(map(self.prices.standing, form.ops - alive), Price()), self.prices.layer(form))
            for _, option in pairs
            for value, form in option.layers
        ]


def _is_layer(op: Op) -> bool:
    return isinstance(op, Affine) and op.layer


def _hands_on(op: Op) -> bool:
    """Whether an operation gives what it reads: what is refused is what stands in front of it."""
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.layer
