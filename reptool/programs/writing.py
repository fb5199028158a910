"""Writes layers into a graph of ATen operators, and takes out what they replace."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, fx, nn
from torch._guards import detect_fake_mode

from reptool.ir.nodes import weight_argument
from reptool.ir.ops import Affine, View
from reptool.programs.collapse import Collapsed, Layer
from reptool.programs.operators import dense, emitted

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
        self._count = 0
        paths = (holder.path(n) for n in graph.nodes if n.users)
        self._owners = {_owner(p) for p in paths if p is not None}  # modules of which something is read

    def write(self) -> dict[Layer, str]:
        """The path of each layer: of its weight, without the last name."""
        made = {layer: self._layer(layer) for layer in self.collapsed.layers}
        self._erase()
        out = {}
        for layer, (weight, bias) in made.items():
            path = self.holder.name(weight, _weight_path(layer, self.collapsed))
            lead, _, name = path.rpartition(".")
            if bias is not None:
                self.holder.name(bias, f"{lead}.bias" if name == "weight" and lead else f"{path}_bias")
            out[layer] = lead if name == "weight" else path
        return out

    def _layer(self, layer: Layer) -> tuple[fx.Node, fx.Node | None]:
        """Write one layer; the nodes of its weight and bias."""
        last = self.mine[layer.region.value][-1]
        learns = self._learns(layer)
        weight = self._parameter(layer.weight, learns)
        bias = None if layer.bias is None else self._parameter(layer.bias, learns)
        self._said = last.meta
        with self.graph.inserting_before(last):
            y = emitted(layer, self.mine[layer.region.root][-1], weight, bias, self._emit, self.core)
            y = self._viewed(layer, y)
            if self.fakes is not None and last.meta["val"].is_contiguous():
                with self.fakes:
                    y = dense(y, self._emit)
        self._handed_on(layer, y)
        return weight, bias

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
            op = self.collapsed.found.ops[node]
            if isinstance(op, View):
                old = self.mine[node][-1]
                read = set(self.mine[op.source]) | set(self.mine.get(node.all_input_nodes[0], ()))
                copied = self.graph.node_copy(old, lambda n, read=read, y=y: y if n in read else n)  # type: ignore[misc]
                self._tell(copied)
                y = copied
        return y

    def _handed_on(self, layer: Layer, y: fx.Node) -> None:
        """All that read a value read the layer's."""
        value, reads = layer.region.value, self.collapsed.read.reads
        for (user, read), seen in reads.value.items():
            if seen is value and user not in layer.region.form.ops:
                for mine in self.mine.get(user, [self.graph.output_node()] if user.op == "output" else []):
                    for old in self.mine[read]:
                        mine.replace_input_with(old, y)
        for old in self.mine[value]:
            old.replace_all_uses_with(y)
            self.holder.rename(old, y)
        self.mine[value] = [*self.mine[value], y]

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
        seen = self._constants(n for layer in self.collapsed.layers for n in layer.region.form.ops)
        written = {layer.region.value: self.mine[layer.region.value][-1] for layer in self.collapsed.layers}
        return {m for n in seen for m in self._with_tuples(n) if m is not written.get(n)}

    def _with_tuples(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that hold a value, and the operator of several values of which it is the first."""
        return [m for n in self.mine.get(node, ()) for m in (n, *(i for i in n.all_input_nodes if _is_tuple(i)))]


def _owner(path: str) -> str:
    return path.rpartition(".")[0]


def _is_tuple(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _weight_path(layer: Layer, collapsed: Collapsed) -> str:
    """The name under which the weight of a region is kept: that of one of its layers, of the same shape if there is."""
    position = collapsed.read.reads.position
    paths: list[tuple[bool, float, str]] = []
    for node in layer.region.form.ops:
        op = collapsed.found.ops[node]
        weight = weight_argument(node) if isinstance(op, Affine) and op.layer else None
        if weight is not None:
            cone = collapsed.facts.cone(weight)
            held = weight.meta.get("tensor")
            other = not isinstance(held, Tensor) or held.shape != layer.weight.shape
            paths += [(other, position[node], cone[0])] if cone else []
    return min(paths)[2] if paths else f"{layer.region.value.name}.weight"
