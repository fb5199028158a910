"""Writes layers into a graph of ATen operators, and takes out what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode
from torch._ops import OpOverload

from reptool.frontends.exported import hint
from reptool.ir.nodes import name_of
from reptool.ir.ops import View
from reptool.passages.norm_affine import TENSORS
from reptool.passages.spread import Spread, origin
from reptool.plan.terms import Tree
from reptool.programs.collapse import Collapsed
from reptool.programs.layers import Layer, Piece
from reptool.programs.operators import aten, dense, emitted, names_of

T = TypeVar("T")
Held = tuple[fx.Node, fx.Node | None]
"""The nodes that read the weight and the bias of an operator."""
_SAID = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node")
"""What an exporter notes beside an operation."""


class Holder(Protocol):
    """What holds the parameters of a graph."""

    def add(self, parameter: nn.Parameter, name: str) -> fx.Node:
        """The node that reads a new parameter, which `name` is the name of until it gets one of its own."""

    def name(self, node: fx.Node, path: str) -> str:
        """Give a new parameter this path, or one like it where that is taken; the path that it got."""

    def rename(self, old: fx.Node, new: fx.Node) -> None:
        """What the signature says of one node it says of another."""

    def drop(self, node: fx.Node) -> None:
        """Take out a parameter or buffer that nobody reads any more."""

    def path(self, node: fx.Node) -> str | None:
        """Where the parameter or buffer that a node reads is kept; None for all other nodes."""


class Writer:
    """Writes what was worked out into a copy of the graph.

    Args:
        graph: a copy of the graph that was read.
        twins: the node of the copy for each node of the graph that was read.
        collapsed: what is to be written.
        holder: what holds its parameters.
        core: whether the operators of ATen's core alone may be used.
    """

    def __init__(
        self, graph: fx.Graph, twins: dict[fx.Node, fx.Node], collapsed: Collapsed, holder: Holder, core: bool
    ) -> None:
        self.graph, self.collapsed, self.holder, self.core = graph, collapsed, holder, core
        self.mine = {k: [twins[n] for n in v] for k, v in collapsed.read.origins.items()}
        self.fakes = detect_fake_mode([n.meta.get("val") for n in graph.nodes])
        self._said: dict[str, Any] = {}
        self._count, self._new = 0, set[fx.Node]()
        paths = (holder.path(n) for n in graph.nodes if n.users)
        self._owners = {_owner(p) for p in paths if p is not None}  # modules of which something is read

    def write(self) -> dict[Layer, str]:
        """The path of each layer: of its weight, without the last name."""
        made: dict[Layer, list[Held]] = {}
        for layer in self.collapsed.layers:
            group = self.collapsed.found.groups.get(layer.region.value)
            if group is None:
                y, made[layer] = self._emitted(layer, layer.region.value)
                self._handed_on(origin(layer.region.value), layer.region.form.ops, y)
            elif layer not in made:
                made |= self._sum(group.tree)
        for spread in self.collapsed.found.spreads:
            self._leave_out(spread)
        for norm in self.collapsed.found.bare:
            self._leave_bare(norm)
        self._erase()
        out: dict[Layer, str] = {}
        for layer, held in made.items():
            for weight, bias in held:
                path = self.holder.name(weight, self.collapsed.weight_path(layer))
                lead, _, name = path.rpartition(".")
                if bias is not None:
                    self.holder.name(bias, f"{lead}.bias" if name == "weight" and lead else f"{path}_bias")
                out.setdefault(layer, lead if name == "weight" else path)
        return out

    def _emitted(self, layer: Layer, at: fx.Node) -> tuple[fx.Node, list[Held]]:
        """Write one layer where a value is computed; its output, and the weight and bias of each of its operators."""
        last = self.mine[origin(at)][0]
        learns = self._learns(layer)
        held: list[Held] = []
        terms: list[tuple[fx.Node, float]] = []
        for piece in layer.pieces:
            weight = self._parameter(piece.weight, learns)
            held.append((weight, None if piece.bias is None else self._parameter(piece.bias, learns)))
            self._said = self._noted(layer, last)
            with self.graph.inserting_before(last):
                terms.append((self._piece(piece, *held[-1]), 1.0))
        self._said = last.meta
        with self.graph.inserting_before(last):
            y = self._viewed(layer, self._added(terms))
            if self.fakes is not None and last.meta["val"].is_contiguous():
                y = dense(y, self._emit)
        return y, held

    def _piece(self, piece: Piece, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
        """Write one operator, and what moves positions around it."""
        given = [self.mine[origin(value)][-1] for value in piece.reads]
        x = given[0] if len(given) == 1 else self._emit(aten.cat.default, given, 1)
        for node in piece.before:
            x = self._copied(node, x)
        y = emitted(piece, x, weight, bias, self._emit, self.core)
        for node in piece.behind:
            y = self._copied(node, y)
        return y

    def _noted(self, layer: Layer, last: fx.Node) -> dict[str, Any]:
        """What the exporter noted beside an operator that a new layer is like: quantizers find layers by it."""
        old = self.collapsed.like(layer)
        if old is not None and old in self.mine and name_of(old) in names_of(layer.shape):
            return self.mine[old][0].meta
        return {k: v for k, v in last.meta.items() if k != "torch_fn"}

    def _sum(self, tree: Tree) -> dict[Layer, list[Held]]:
        """Write the layers of a sum's groups of terms, and the sum of these and of the other terms."""
        found = self.collapsed.found
        of_groups = {found.groups.get(layer.region.value): layer for layer in self.collapsed.layers}
        chosen = {g: layer for g, layer in of_groups.items() if g is not None and g.tree is tree}
        made: dict[Layer, list[Held]] = {}
        terms: list[tuple[fx.Node, float]] = []
        for group, layer in chosen.items():
            y, made[layer] = self._emitted(layer, tree.top)
            terms.append((y, group.number))
        terms += [(self.mine[origin(t)][-1], number) for t, number in tree.rest(list(chosen))]
        with self.graph.inserting_before(self.mine[tree.top][0]):
            total = self._added(ordered(terms))
        self._handed_on(tree.top, frozenset(tree.ops), total)
        return made

    def _added(self, terms: list[tuple[fx.Node, float]]) -> fx.Node:
        """The sum of terms, each times its number."""
        total: fx.Node | None = None
        for value, factor in terms:
            if total is not None and factor == -1:
                total = self._emit(aten.sub.Tensor, total, value)
                continue
            value = value if factor == 1 else self._emit(aten.mul.Scalar, value, factor)
            total = value if total is None else self._emit(aten.add.Tensor, total, value)
        assert total is not None
        return total

    def _learns(self, layer: Layer) -> bool:
        """Whether one of the parameters that went into a layer is trained."""
        cone = self._constants(layer.region.form.ops)
        return any(n.op == "get_attr" and n.meta["tensor"].requires_grad for n in cone)

    def _parameter(self, tensor: Tensor, learns: bool) -> fx.Node:
        self._count += 1
        node = self.holder.add(nn.Parameter(tensor, requires_grad=learns), f"reptool_{self._count}")
        if self.fakes is not None:
            node.meta["val"] = self.fakes.from_tensor(tensor, static_shapes=True)
        return node

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta.update({k: v for k, v in self._said.items() if k in _SAID})
        self._tell(node)
        self._new.add(node)
        return node

    def _tell(self, node: fx.Node) -> None:
        """The fake of a new node."""
        if self.fakes is not None:
            given: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
            with self.fakes:
                node.meta["val"] = node.target(*given[0], **given[1])  # type: ignore[operator]

    def _viewed(self, layer: Layer, y: fx.Node) -> fx.Node:
        """The views that stay behind a layer."""
        position = self.collapsed.read.reads.position
        for node in sorted(layer.region.form.ops, key=position.__getitem__):
            if isinstance(self.collapsed.found.ops[node], View):
                y = self._copied(node, y)
        return y

    def _copied(self, node: fx.Node, y: fx.Node) -> fx.Node:
        """An operation of one value, of another one."""
        source = self.collapsed.found.ops[node].sources[0]
        read = set(self.mine[origin(source)]) | set(self.mine.get(node.all_input_nodes[0], ()))
        copied = self.graph.node_copy(self.mine[node][0], lambda n: y if n in read else n)
        self._tell(copied)
        self._new.add(copied)
        return copied

    def _handed_on(self, value: fx.Node, ops: frozenset[fx.Node], y: fx.Node) -> None:
        """All that read a value, but for the operations that computed it, read another node."""
        for (user, read), seen in self.collapsed.read.reads.value.items():
            if seen is value and user not in ops:
                for mine in self.mine.get(user, [self.graph.output_node()] if user.op == "output" else []):
                    for old in self.mine[read]:
                        mine.replace_input_with(old, y)
        for old in self.mine[value]:
            old.replace_all_uses_with(y)
            self.holder.rename(old, y)
        self.mine[value] = [*self.mine[value], y]

    # --- norms that moved
    def _leave_out(self, spread: Spread) -> None:
        """Let what reads a norm that others took read what the norm reads."""
        source = self.mine[origin(spread.source)][-1]
        if spread.norm in self.mine and source is not self.mine[spread.norm][-1]:
            last = self.mine[spread.norm][0]
            self._said = last.meta
            users = [u for old in self.mine[spread.norm] for u in old.users]
            with self.graph.inserting_before(last):
                copied = self.fakes is not None and last.meta["val"].is_contiguous() and not _in_order(source, users)
                self._handed_on(spread.norm, frozenset(), dense(source, self._emit) if copied else source)

    def _leave_bare(self, norm: fx.Node) -> None:
        """Take scale and shift from a norm."""
        for node in (m for n in self.mine[norm] for m in self._with_tuples_of(n)):
            if isinstance(node.target, OpOverload):
                for i, argument in enumerate(node.target._schema.arguments):
                    if argument.name in TENSORS and i < len(node.args):
                        node.update_arg(i, None)
                node.kwargs = {k: None if k in TENSORS else v for k, v in node.kwargs.items()}

    # --- what is gone
    def _erase(self) -> None:
        """Take out what nobody reads any more, parameters among it."""
        gone = self._replaced()
        for node in reversed(list(self.graph.nodes)):
            if node not in gone or node.users or node.op == "output":
                continue
            if node.op in ("placeholder", "get_attr"):
                self.holder.drop(node)
            else:
                self.graph.erase_node(node)
        self._erase_counters()

    def _erase_counters(self) -> None:
        """Take out what nobody ever read of modules that are gone, such as how many batches a norm has seen."""
        left = {_owner(p) for n in self.graph.nodes if n.users and (p := self.holder.path(n)) is not None}
        for node in list(self.graph.nodes):
            path = self.holder.path(node) if not node.users else None
            if path is not None and _owner(path) in self._owners - left:
                self.holder.drop(node)

    @staticmethod
    def _constants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Operations, and the constants that they are computed from."""
        todo, seen = list(nodes), set[fx.Node]()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += [n for n in node.all_input_nodes if n.meta["const"]]
        return seen

    def _replaced(self) -> set[fx.Node]:
        """What was computed for what is a layer now."""
        found = self.collapsed.found
        ops = {n for layer in self.collapsed.layers for n in layer.region.form.ops}
        ops |= {s.norm for s in found.spreads} | found.bare.keys()
        trees = [
            found.groups[layer.region.value].tree
            for layer in self.collapsed.layers
            if layer.region.value in found.groups
        ]
        seen = self._constants((*ops, *(n for tree in trees for n in tree.ops)))
        return {m for n in seen for m in self._with_tuples(n) if m not in self._new}

    def _with_tuples(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that hold a value, and the operator of several values of which it is the first."""
        return [m for n in self.mine.get(node, ()) for m in self._with_tuples_of(n)]

    @staticmethod
    def _with_tuples_of(node: fx.Node) -> list[fx.Node]:
        return [node, *(i for i in node.all_input_nodes if _is_tuple(i))]


def ordered(terms: list[tuple[T, float]]) -> list[tuple[T, float]]:
    """Terms with those that are added as they are in front."""
    return sorted(terms, key=lambda term: term[1] != 1)


def _in_order(source: fx.Node, users: Iterable[fx.Node]) -> bool:
    """Whether all users compute from a value what they compute from a dense copy, in the same order of axes."""
    strides = [hint(s) for s in source.meta["val"].stride()]
    known = [s for s in strides if s is not None]
    falling = len(known) == len(strides) and all(a >= b for a, b in pairwise(known))
    return falling and all(
        isinstance(u.target, OpOverload)
        and all(a.alias_info is None for a in (*u.target._schema.returns, *u.target._schema.arguments))
        for u in users
    )


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))
