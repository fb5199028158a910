"""Which modules do nothing but hand on to one layer, once a plan is carried out.

A module hands on where, in every call that was traced, its output is the layer's value and the layer's input is the
module's one argument: all operations in between belong to the layer's region or give what they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx

from reptool.ir.nodes import asking
from reptool.ir.ops import View
from reptool.ir.trace import VALUE, Event, Setting, all_events
from reptool.report.totals import is_layer
from reptool.rewrite.setting_checks import outside_of
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced, is_plain_identity
from reptool.surgery.units import Plan, Unit


@dataclass
class Wrapper:
    """A module that hands on to one layer.

    Args:
        layer: full path of the layer.
        read: what its code read that is no data, each with the full path of the module it was read of.
        outside: what its code read from outside of the model, each with the full path of the module that read it.
        asked: full paths of the modules in it whose code asked about a value.
        values: tensors whose numbers decided what its code does.
    """

    layer: str
    read: list[tuple[str, Setting]] = field(default_factory=list)
    outside: list[tuple[str, str]] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    values: list[str] = field(default_factory=list)


def wrappers(plan: Plan) -> dict[str, Wrapper]:
    """Each module that hands on to one layer, by its full path, the outermost modules first.

    Args:
        plan: everything that was worked out for the model.
    """
    found: dict[str, Wrapper] = {}
    for unit in plan.units:
        found |= {f"{unit.prefix}.{path}" if unit.prefix else path: held for path, held in _of_unit(unit)}
    return dict(sorted(found.items(), key=lambda pair: pair[0].count(".")))


def _of_unit(unit: Unit) -> Iterator[tuple[str, Wrapper]]:
    """The same for one traced module, itself not among them: how it is called is not known."""
    calls: dict[str, list[Event]] = {}
    for event in all_events(unit.trace.top):
        inside = event.parent is not None and any(e.path == event.path for e in event.parent.ancestors())
        if not inside:  # what its own code calls of its methods is a part of that call
            calls.setdefault(event.path, []).append(event)
    by_value = {s.region.value: s for s in unit.surgery.sites}
    runs = Traced(unit.trace, unit.found, set(), {}, set()).calls
    asks = asking(unit.trace.graph.nodes)
    for path, events in calls.items():
        layers = {_layer(unit, e, by_value, asks) for e in events}
        layer = layers.pop() if len(layers) == 1 else None
        if path and layer is not None and layer.startswith(f"{path}.") and len(runs.get(layer, ())) == len(events):
            yield path, _with_what_decided(unit, events, layer)


def _with_what_decided(unit: Unit, events: list[Event], layer: str) -> Wrapper:
    def full(path: str) -> str:
        return f"{unit.prefix}.{path}" if unit.prefix else path

    found = Wrapper(full(layer))
    for event in (inner for e in events for inner in all_events(e)):
        found.read += [(full(s.path), s) for s in event.settings if not s.by_torch]
        found.outside += [(full(event.path), str(o)) for o in outside_of(event)]
        found.asked |= {full(event.path)} if event.questions else set()
        found.values += [q.node for q in event.questions if q.what == VALUE]
    return found


def _layer(unit: Unit, event: Event, by_value: dict[fx.Node, Site], asks: set[fx.Node]) -> str | None:
    """The layer that a call hands on to; None where it does more, or is given more than one value."""
    out = event.output
    if event.method != "forward" or event.kwargs or len(event.args) != 1 or not isinstance(out, fx.Node):
        return None
    if not isinstance(event.args[0], fx.Node) or any(e.effects for e in all_events(event)):
        return None
    given, value = _before(unit, event.args[0]), _before(unit, out)
    work = [n for n in event.nodes() if not (n in asks or _gives_it_back(unit, n))]
    site = by_value.get(value) or by_value.get(out)
    if site is None:
        return _single(unit, work, given, value)
    if any(isinstance(unit.found.ops[n], View) for n in site.region.form.ops):
        return None  # it runs behind the layer
    whole = set(work) <= set(site.region.form.ops)
    inside = {n for n in site.region.form.ops if not _gives_it_back(unit, n)} <= set(work)
    return site.slot if whole and inside and _before(unit, site.region.root) is given else None


def _single(unit: Unit, work: list[fx.Node], given: fx.Node, value: fx.Node) -> str | None:
    """The layer that is the only work of a call and that no region touched."""
    node = work[0] if len(work) == 1 else None
    if node is None or node is not value or node.op != "call_module" or node not in unit.alive:
        return None
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    plain = is_layer(unit.trace.root.get_submodule(str(node.target)))
    return str(node.target) if plain and _before(unit, node.args[0]) is given else None


def _gives_it_back(unit: Unit, node: fx.Node) -> bool:
    """Whether an operation gives its input as it is."""
    return is_plain_identity(unit.found.ops.get(node), node)


def _before(unit: Unit, node: fx.Node) -> fx.Node:
    """The value behind operations that give their input as it is."""
    while _gives_it_back(unit, node):
        node = unit.found.ops[node].sources[0]
    return node
