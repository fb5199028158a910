"""The graph of a traced module before and after its plan is carried out, as plain data for a picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from reptool.ir.nodes import asking, name_of
from reptool.pysource.places import named
from reptool.surgery.units import Plan, Unit, layer_name


@dataclass
class Operation:
    """One operation, or one layer that takes the place of several.

    Args:
        kind: what it is, in a word.
        place: where it stands: the path of a module, or the function and the line.
        sources: indices of the operations whose values it reads.
        region: index of the region that it is a part of, or that it computes; None where none is.
        refused: why it was left alone, with the code in front; empty where nothing was refused.
    """

    kind: str
    place: str
    sources: list[int] = field(default_factory=list)
    region: int | None = None
    refused: str = ""


@dataclass
class Graph:
    """One traced module.

    Args:
        place: its path, empty for the whole model.
        before: its operations, sources first.
        after: what runs once the plan is carried out.
    """

    place: str
    before: list[Operation]
    after: list[Operation]


def graphs_of(plan: Plan, layers: dict[str, str]) -> list[Graph]:
    """The graph of each traced module.

    Args:
        plan: everything that was worked out.
        layers: the regions' layers, by name, and what each is in words, in the order of the report.
    """
    drawn = (_Drawing(unit, layers) for unit in plan.units)
    return [d.graph() for d in drawn if d.shown]


class _Drawing:
    """Reads one traced module."""

    def __init__(self, unit: Unit, layers: dict[str, str]) -> None:
        self.unit, self.layers = unit, list(layers)
        self.kinds = [kind.partition("(")[0] for kind in layers.values()]
        asks = asking(unit.trace.graph.nodes)
        self.shown = [n for n in unit.trace.graph.nodes if _is_value(n, asks)]
        self.region: dict[fx.Node, int] = {}  # of a value that a layer computes
        self.inside: dict[fx.Node, int] = {}
        self.reads: dict[int, tuple[fx.Node, ...]] = {}
        for site in unit.surgery.sites:
            index = self.layers.index(layer_name(unit, site))
            self.region[site.region.value] = index
            self.reads.setdefault(index, site.region.form.reads)
            self.inside |= {n: index for n in site.region.form.ops if n not in self.inside}
        self.refused = {n: f"{r.code.value}: {r.sentence}" for n, r in unit.refusals.items()}

    def graph(self) -> Graph:
        """Both pictures."""
        return Graph(self.unit.prefix, self._before(), self._after())

    def _before(self) -> list[Operation]:
        index = {n: i for i, n in enumerate(self.shown)}
        return [
            Operation(_kind(n), _place(self.unit, n), _indices(n.all_input_nodes, index), self.inside.get(n),
                      self.refused.get(n, ""))
            for n in self.shown
        ]  # fmt: skip

    def _after(self) -> list[Operation]:
        """What is computed as it stands, and one operation for each region, where its last one stood."""
        stays = [n for n in self.shown if self._stays(n) or n in self.region]
        index = {n: i for i, n in enumerate(stays)}
        last = {self.region[n]: i for n, i in index.items() if n in self.region}
        made: list[Operation] = []
        for node in stays:
            region = self.region.get(node)
            read = self.reads[region] if region is not None else node.all_input_nodes
            sources = sorted({i for n in read for i in self._run(n, index, last) if i < len(made)})
            if region is not None:
                made.append(Operation(self.kinds[region], self.layers[region], sources, region))
            else:
                made.append(Operation(_kind(node), _place(self.unit, node), sources, None, self.refused.get(node, "")))
        return made

    def _stays(self, node: fx.Node) -> bool:
        return node.op in ("placeholder", "output") or (node in self.unit.alive and node not in self.region)

    def _run(self, node: fx.Node, index: dict[fx.Node, int], last: dict[int, int]) -> Iterator[int]:
        """What gives the value of an operation: itself, the layer of its region, or what it hands on."""
        if node in index:
            yield index[node]
        elif node in self.inside and self.inside[node] in last:
            yield last[self.inside[node]]
        else:
            for source in node.all_input_nodes:
                yield from self._run(source, index, last)


def _is_value(node: fx.Node, asks: set[fx.Node]) -> bool:
    """Whether a node is worth a picture: neither a constant nor a question about a shape."""
    if node.op == "output":
        return True
    return node.op != "get_attr" and node not in asks


def _indices(nodes: list[fx.Node], index: dict[fx.Node, int]) -> list[int]:
    return [index[n] for n in nodes if n in index]


def _kind(node: fx.Node) -> str:
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input", "output": "output"}[node.op]
    module = node.meta.get("module")
    return type(module).__name__ if isinstance(module, nn.Module) else name_of(node) or str(node.target)


def _place(unit: Unit, node: fx.Node) -> str:
    if node.op == "call_module":
        return unit.trace.place(str(node.target))
    return str(node.target) if node.op == "placeholder" else "" if node.op == "output" else named(node)
