"""The place of a functional layer: its call stays, and its weight and bias become parameters of a module around it."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx, nn

from reptool.ir.kinds.casts import made_of
from reptool.ir.nodes import name_of, takes_weight, weight_argument
from reptool.ir.trace import Event, Trace
from reptool.lift.layers.deformable import BIAS, WEIGHT
from reptool.lift.layers.deformable import NAME as DEFORMABLE
from reptool.plan.candidates import Analysis
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Place
from reptool.surgery.placing.way import carriers
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def functional(traced: Traced, site: Site) -> Site | Refusal:
    """A functional layer keeps its call; weight and bias become plain parameters of the module they came from."""
    carrier = site.carrier
    event: Event = carrier.meta["event"]
    weight = weight_of(carrier, traced.found)
    if weight is None:
        return Refusal(Code.METHOD, "the layer's weight is not held by a module", (carrier.name,))
    read = [str(n.target) for n in _attributes(carrier) if str(n.target) not in traced.trace.constants]
    held = [p for p in read if p.rpartition(".")[0] == event.path] or [
        p for p in read if not event.path or p.startswith(f"{event.path}.")
    ]  # its own, or what modules inside of it hold
    if not held:
        return Refusal(
            Code.METHOD, "the layer's weight is held by another module than the one that uses it", (carrier.name,)
        )
    direct = _direct_names(carrier, event.path)
    name = (
        direct[0]
        or next((p.rpartition(".")[2] for p in held if _may_hold(traced, event, p, weight)), None)
        or _free_name(event.module, held[0][len(event.path) :].lstrip("."))
    )
    bias = direct[1] or ("bias" if name == "weight" else f"{name}_bias")
    alone = site.shape.kind == "deformable" and carriers(traced, site.region.form.ops) == [carrier]
    in_place = alone and _keeps_code(event, direct, site.region.form.shape.biased)
    return replace(site, names=(name, bias), owner=event.path, place=Place.of(weight), in_place=in_place)


def _may_hold(traced: Traced, event: Event, path: str, weight: Tensor) -> bool:
    """Whether the tensor at `path` is the module's own and of the shape of the weight that takes its place."""
    return path.rpartition(".")[0] == event.path and _same_shape(traced.trace, path, weight)


def _free_name(module: nn.Module, held: str) -> str:
    """A name for a weight that is computed from others: one that the module does not use."""
    if "." in held:
        name = held.replace(".", "_")
        return f"{name}_weight" if hasattr(module, name) else name
    return "weight" if not hasattr(module, "weight") and not hasattr(module, "bias") else f"{held}_weight"


def weight_of(node: fx.Node, found: Analysis) -> Tensor | None:
    """The value of the weight that a functional layer is given."""
    argument = weight_argument(node)
    value = None if argument is None else found.facts.constant(argument)
    return value if isinstance(value, Tensor) else None


def _keeps_code(event: Event, direct: tuple[str | None, str | None], biased: bool) -> bool:
    """Whether the code around a functional layer reads the tensors that it is to have already."""
    home = getattr(type(event.module).forward, "__module__", "")
    stock = home == "torchvision.ops.deform_conv" and event.method == "forward" and direct[0] == "weight"
    return stock or (direct[0] is not None and (direct[1] is not None or not biased))


def _attributes(node: fx.Node) -> list[fx.Node]:
    out, stack, seen = [], [n for n in node.all_input_nodes if n.meta["const"]], set()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op == "get_attr":
            out.append(n)
        stack += made_of(n)
    return out


def _direct_names(node: fx.Node, path: str) -> tuple[str | None, str | None]:
    """Attribute names of weight and bias when the layer reads them as they are."""
    found: list[str | None] = []
    if not takes_weight(node) and name_of(node) != DEFORMABLE:
        return None, None
    for position, key in ((WEIGHT, "weight"), (BIAS if name_of(node) == DEFORMABLE else 2, "bias")):
        value = node.args[position] if len(node.args) > position else node.kwargs.get(key)
        direct = isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target).rpartition(".")[0] == path
        found.append(str(value.target).rpartition(".")[2] if direct and isinstance(value, fx.Node) else None)
    return found[0], found[1]


def _same_shape(trace: Trace, path: str, weight: Tensor) -> bool:
    owner, _, name = path.rpartition(".")
    held = getattr(trace.root.get_submodule(owner), name, None)
    return isinstance(held, Tensor) and held.shape == weight.shape
