"""`Rule`: a rewrite of a network that is no affine map alone, and `Site`: a place where one may act.

A rule sees the network as one `torch.fx.GraphModule` in float64, after everything affine was fused. It says where it
may act (`match`), under which condition it is exact (`check`), and what it does (`rewrite`). It holds its configuration
and nothing else: what a check found travels to the rewrite as evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from reptool.ir.aliasing import mutated_argument
from reptool.ir.nodes import name_of
from reptool.refusal import Code, Refusal
from reptool.runtime.hooks import guarded_rank, set_guard

Kind: TypeAlias = "type[nn.Module] | str | tuple[type[nn.Module] | str, ...]"
"""A class of modules, the name of a function or method (``"relu"``), or several of these."""


class Site:
    """Nodes of a graph that a rule acts on; the last one (or the last ones) are the values that it computes anew.

    Args:
        graph: the network, in float64. A rule changes it through the methods of this class alone.
        nodes: in the order in which they run.
        outputs: how many of the last ones are values that others read.
    """

    def __init__(self, graph: fx.GraphModule, *nodes: fx.Node, outputs: int = 1) -> None:
        self.graph, self.nodes, self.outputs = graph, nodes, outputs

    @property
    def place(self) -> str:
        """The paths of its modules and the names of its other operations."""
        return ", ".join(str(n.target) if n.op == "call_module" else n.name for n in self.nodes)

    def module(self, node: fx.Node) -> Any:
        """The module that a node calls."""
        return self.graph.get_submodule(str(node.target))

    def constant(self, value: Any) -> Tensor | float | None:
        """A number, or the tensor of a node that reads one; None for what depends on data."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, fx.Node) or value.op != "get_attr":
            return None
        held: Any = self.graph
        for part in str(value.target).split("."):
            held = getattr(held, part)
        return held.detach() if isinstance(held, Tensor) else None

    # --- changes
    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Let a node call another module; the one that it called stays as it is for others.

        A check of the rank of its input goes on with it.
        """
        rank = guarded_rank(self.module(node)) if node.op == "call_module" else None
        if rank is not None:
            set_guard(module, rank)
        name = self._free("rewritten")
        self.graph.add_submodule(name, module.train(self.graph.training))
        node.op, node.target = "call_module", name

    def insert(self, before: fx.Node, function: Callable[..., Any] | nn.Module, *args: Any) -> fx.Node:
        """A new call of a function or module in front of a node; tensors among its arguments become constants."""
        with self.graph.graph.inserting_before(before):
            given = tuple(self._held(a) if isinstance(a, Tensor) else a for a in args)
            if not isinstance(function, nn.Module):
                return self.graph.graph.call_function(function, given)
            name = self._free("inserted")
            self.graph.add_submodule(name, function.train(self.graph.training))
            return self.graph.graph.call_module(name, given)

    def repeat(self, before: fx.Node, node: fx.Node, source: fx.Node, by: fx.Node) -> fx.Node:
        """The operation of a node once more, in front of another one, on `by` in the place of `source`."""
        with self.graph.graph.inserting_before(before):
            constants = {n: self.graph.graph.get_attr(str(n.target)) for n in node.all_input_nodes if n is not source}
            return self.graph.graph.node_copy(node, lambda n: by if n is source else constants[n])

    def read(self, node: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Let a node read another value in the place of one."""
        node.replace_input_with(old, new)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Let whoever reads a node read another one."""
        node.replace_all_uses_with(by)

    def _held(self, tensor: Tensor) -> fx.Node:
        name = self._free("constant")
        self.graph.register_buffer(name, tensor.detach().clone())
        return self.graph.graph.get_attr(name)

    def _free(self, lead: str) -> str:
        count = 0
        while hasattr(self.graph, f"{lead}_{count}"):
            count += 1
        return f"{lead}_{count}"


class Rule:
    """A rewrite; subclass it and give `name`, `match`, `check` and `rewrite`.

    >>> class Twice(Rule):
    ...     name = "relu_relu"
    ...     def match(self, graph):
    ...         yield from chain(graph, ("relu", nn.ReLU), ("relu", nn.ReLU))
    ...     def check(self, site):
    ...         return True  # a ReLU of a ReLU is one ReLU: nothing to find out
    ...     def rewrite(self, site, evidence):
    ...         site.replace(site.nodes[1], site.nodes[0])
    >>> import reptool
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.ReLU()).eval()
    >>> made = reptool.deploy(model, rules=(*reptool.RULES, Twice()), flatten=True)
    >>> [n.op for n in made.graph.nodes].count("call_module")
    2
    """

    name: str = ""

    def match(self, graph: fx.GraphModule) -> Iterable[Site]:
        """The places where the rule may act."""
        raise NotImplementedError

    def check(self, site: Site) -> Any:
        """A `Refusal` where the rule is not exact, else what `rewrite` needs to know (anything but None)."""
        raise NotImplementedError

    def rewrite(self, site: Site, evidence: Any) -> None:
        """Change the graph at the site; nodes that nobody reads any more are taken out afterwards."""
        raise NotImplementedError

    def price(self, site: Site, evidence: Any) -> float:
        """What the network costs more by it: where that is above 0, it is done with ``force=True`` alone."""
        return -1.0

    def __repr__(self) -> str:
        return f"<rule {self.name!r}>"


def is_kind(graph: fx.GraphModule, node: fx.Node, kind: Kind) -> bool:
    """Whether a node calls a module of a class, or a function or method of a name."""
    if isinstance(kind, tuple):
        return any(is_kind(graph, node, k) for k in kind)
    if isinstance(kind, str):
        return node.op in ("call_function", "call_method") and name_of(node) == kind
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), kind)


def chain(graph: fx.GraphModule, *kinds: Kind) -> Iterator[Site]:
    """Every row of nodes of these kinds, each of which reads the one in front as its first argument."""
    for node in graph.graph.nodes:
        row = [node] if is_kind(graph, node, kinds[-1]) else []
        for kind in reversed(kinds[:-1]):
            first = row[-1].args[0] if row and row[-1].args else None
            if not isinstance(first, fx.Node) or not is_kind(graph, first, kind):
                break
            row.append(first)
        else:
            if row:
                yield Site(graph, *reversed(row))


def in_the_way(site: Site) -> Refusal | None:
    """Why no rule may act at a site: an inner value is read elsewhere, or a value from outside is written in place."""
    inside = set(site.nodes)
    for node in site.nodes[: -site.outputs]:
        others = [u for u in node.users if u not in inside]
        if others:
            return Refusal(Code.READ_ELSEWHERE, f"{node.name} is also read by {others[0].name}", (node.name,))
    for node in site.nodes:
        written = written_by(site, node)
        if written is not None and written not in inside:
            return Refusal(Code.MUTATED, f"{node.name} writes into {written.name}", (node.name,))
    return None


def written_by(site: Site, node: fx.Node) -> fx.Node | None:
    """The value that an operation writes into."""
    if node.op != "call_module":
        return mutated_argument(node)
    return node.all_input_nodes[0] if getattr(site.module(node), "inplace", False) and node.all_input_nodes else None
