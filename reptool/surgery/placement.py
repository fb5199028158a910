"""Placement: the carrier of a region, whose place the fused layer takes, and what such a place has to offer."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from reptool.ir.casts import made_of
from reptool.ir.nodes import is_inert, name_of, takes_weight, weight_argument
from reptool.ir.ops import Affine, Op, View
from reptool.ir.trace import VALUE, Event, Trace
from reptool.ir.walk import nodes_in
from reptool.lift.deformable import BIAS, WEIGHT
from reptool.lift.deformable import NAME as DEFORMABLE
from reptool.lift.transposed import asks_for_size
from reptool.plan.candidates import Analysis
from reptool.plan.select import Region
from reptool.pysource.module_info import calls_itself
from reptool.pysource.places import asked
from reptool.pysource.straight_line import straight
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry, Place, geometry, geometry_of
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


class Placing(Traced):
    """Finds the place of a region's layer."""

    def site(self, region: Region) -> Site | Refusal:
        """The best place for a region's layer, or why there is none."""
        ops = region.form.ops
        shape = geometry(region.form.shape)
        if isinstance(shape, Refusal):
            return shape.at(region.value.name)
        problem = self._owners_refused(ops)
        if problem is not None:
            return problem
        best: tuple[int, Site] | None = None
        position = self.reads.position
        last: Refusal | None = None
        for carrier in sorted(self._carriers(ops), key=position.__getitem__):
            found = self.placed(region, carrier, shape)
            if isinstance(found, Refusal):
                last = last or found
                continue
            rank = self._rank(found)
            if best is None or rank < best[0]:
                best = (rank, found)
        if best is None:
            return last or Refusal(
                Code.METHOD, "no layer in this region has a place for the fused one", (region.value.name,)
            )
        site = best[1]
        taint = self._taint(site)
        return taint if taint is not None else site

    def _carriers(self, ops: Iterable[fx.Node]) -> list[fx.Node]:
        """The region's layers; where there are none (a norm or a pooling by itself) its modules."""
        layers = [n for n in ops if _is_layer(self.found.ops[n])]
        alone = [n for n in ops if n.op == "call_module" and self.found.ops[n].owners]
        return layers or [n for n in alone if n not in self.found.shares]

    @staticmethod
    def _rank(site: Site) -> int:
        return (0 if site.reuse else 2) + (0 if site.slot is not None else 4) + (1 if site.event is not None else 0)

    def _owners_refused(self, ops: Iterable[fx.Node]) -> Refusal | None:
        for node in ops:
            op = self.found.ops[node]
            for owner in op.owners:
                others = self.tied.get(owner)
                if others:
                    shared = f"{self.trace.place(owner)!r} is shared with {', '.join(map(repr, sorted(others)))}"
                    return Refusal(Code.SHARED, f"the parameter {shared}", (node.name,))
        return None

    def placed(self, region: Region, carrier: fx.Node, shape: Geometry) -> Site | Refusal:
        """The region's layer at the place of one carrier, or why it cannot stand there."""
        way = self._way(region, carrier)
        dead = [n for n in region.form.ops if n not in way and n is not carrier]
        position = self.reads.position
        if any(isinstance(self.found.ops[n], View) and position[n] < position[carrier] for n in way):
            return Refusal(Code.LAYOUT, "the axes are rearranged in front of this layer", (carrier.name,))
        op = self.found.ops[carrier]
        if shape.kind == "deformable" and not (isinstance(op, Affine) and op.beside):
            return Refusal(Code.METHOD, "a layer in this place would not know where to read", (carrier.name,))
        sized = [n for n in region.form.ops if asks_for_size(n)]
        others = [n for n in region.form.ops if n is not carrier and _is_transposed(self.found.ops[n])]
        if sized and (sized != [carrier] or others):
            sentence = "a layer that is told what size to give is called by itself"
            return Refusal(Code.METHOD, sentence, (carrier.name,))
        site = Site(region, carrier, None, shape, False, way, dead)
        written = self._written(region, way, carrier)
        if written is not None:
            return written
        if carrier.op == "call_module":
            path = str(carrier.target)
            module = carrier.meta["module"]
            reuse = geometry_of(module) == shape and _plain_forward(module)
            if not path and not reuse:
                return Refusal(Code.METHOD, "the model itself is this layer", (carrier.name,))
            return replace(site, slot=path, reuse=reuse, place=Place.of(self._weight_near(path)))
        held = _weight_of(carrier, self.found)
        if held is not None and not held.is_floating_point():
            return Refusal(Code.DTYPE, f"the layer computes with {held.dtype} numbers", (carrier.name,))
        event = None if self.found.facts.follows(carrier) else self._whole_event(site)
        if (
            event is not None
            and shape.kind not in ("transposed", "deformable")
            and _weight_of(carrier, self.found) is not None
        ):
            weight = _weight_of(carrier, self.found)
            assert weight is not None
            return replace(site, slot=event.path, event=event, place=Place.of(weight))
        return self._functional(site)

    def _weight_near(self, path: str) -> Tensor:
        """A tensor of the dtype and device that a layer at `path` is to have: its own, or the nearest around it."""
        while True:
            module = self.modules[path]
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
            if not path:
                return torch.zeros(())
            path = path.rpartition(".")[0]

    def _functional(self, site: Site) -> Site | Refusal:
        """A functional layer keeps its call; weight and bias become plain parameters of the module they came from."""
        carrier = site.carrier
        event: Event = carrier.meta["event"]
        weight = _weight_of(carrier, self.found)
        if weight is None:
            return Refusal(Code.METHOD, "the layer's weight is not held by a module", (carrier.name,))
        read = [str(n.target) for n in _attributes(carrier) if str(n.target) not in self.trace.constants]
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
            or next((p.rpartition(".")[2] for p in held if self._may_hold(event, p, weight)), None)
            or self._free_name(event.module, held[0][len(event.path) :].lstrip("."))
        )
        bias = direct[1] or ("bias" if name == "weight" else f"{name}_bias")
        alone = site.shape.kind == "deformable" and self._carriers(site.region.form.ops) == [carrier]
        in_place = alone and _keeps_code(event, direct, site.region.form.shape.biased)
        return replace(site, names=(name, bias), owner=event.path, place=Place.of(weight), in_place=in_place)

    def _may_hold(self, event: Event, path: str, weight: Tensor) -> bool:
        """Whether the tensor at `path` is the module's own and of the shape of the weight that takes its place."""
        return path.rpartition(".")[0] == event.path and _same_shape(self.trace, path, weight)

    @staticmethod
    def _free_name(module: nn.Module, held: str) -> str:
        """A name for a weight that is computed from others: one that the module does not use."""
        if "." in held:
            name = held.replace(".", "_")
            return f"{name}_weight" if hasattr(module, name) else name
        return "weight" if not hasattr(module, "weight") and not hasattr(module, "bias") else f"{held}_weight"

    def _way(self, region: Region, carrier: fx.Node) -> list[fx.Node]:
        """Absorbed operations on the way root -> carrier -> value."""
        ops = region.form.ops
        above: dict[fx.Node, fx.Node] = {}
        queue = [region.value]
        while queue:
            node = queue.pop()
            if node is carrier:
                break
            for source in self.found.ops[node].sources:
                if source in ops and source not in above:
                    above[source] = node
                    queue.append(source)
        way, node = [], carrier
        while node is not region.value:
            node = above[node]
            way.append(node)
        node = carrier
        while True:
            node = next((s for s in self.found.ops[node].sources if s in ops), region.root)
            if node is region.root:
                return way
            way.append(node)

    def _written(self, region: Region, way: list[fx.Node], carrier: fx.Node) -> Refusal | None:
        position = self.reads.position
        readers = [position[n] for n in region.form.ops if region.root in self.found.ops[n].sources]
        first = min(readers, default=0)
        if self.reads.written_between(region.root, first, position[carrier]):
            return Refusal(
                Code.MUTATED, "the value read is written in place before the layer runs", (region.root.name,)
            )
        for node in region.form.ops:
            written = self.reads.mutates.get(node)
            if written is None:
                continue
            storage = self.reads.storage.get(written, written)
            if storage is self.reads.storage.get(region.root, region.root):
                return Refusal(
                    Code.MUTATED, "the value the region reads is written in place inside of it", (node.name,)
                )
            made = storage if storage in region.form.ops else None
            if made is None:
                return Refusal(
                    Code.MUTATED, "a value from outside the region is written in place inside of it", (node.name,)
                )
        return None

    def _whole_event(self, site: Site) -> Event | None:
        """The module call around a functional layer that does nothing beside this region."""
        ops = site.region.form.ops
        for event in site.carrier.meta["event"].ancestors():
            if event.method != "forward":
                continue
            if not event.path or event.parent is None or event.hooked:
                break
            output = event.output
            if (
                not isinstance(output, fx.Node)
                or output not in ops
                or not (output in site.onpath or output is site.carrier)
            ):
                break
            inputs = list(_event_inputs(event))
            if len(event.args) != 1 or event.kwargs or len(inputs) != 1:
                break
            entry = inputs[0]
            if entry is not site.region.root and entry not in site.onpath:
                break
            inner = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
            return None if any(n not in ops for n in inner) or event.questions or event.effects else event
        return None

    def _taint(self, site: Site) -> Refusal | None:
        """Whether the code around the region asked something that another input might answer otherwise."""
        chains = [list(n.meta["event"].ancestors()) for n in (*site.onpath, *site.dead, site.carrier)]
        common = set(chains[0])
        for chain in chains[1:]:
            common &= set(chain)
        lowest = next((e for e in chains[0] if e in common), None)
        seen: list[Event] = []
        for chain, node in zip(chains, (*site.onpath, *site.dead, site.carrier), strict=True):
            for event in chain:
                if event not in seen and (event in common) <= (event is lowest):
                    seen.append(event)
                if event is lowest:
                    break
            passed = () if node is site.region.value else node.meta.get("through", ())  # calls that hand it on
            seen += [e for e in dict.fromkeys(passed) if e not in common and e not in seen]
        seen += [e for e in self._between_reads(site, lowest) if e not in seen]
        for event in seen:
            questions = [*event.questions, *event.minor]
            if lowest is not None and event is lowest and questions and self._in_line(site, event):
                continue
            if self.fallbacks is not None and lowest is not None and questions:
                site.asked = [*(site.asked or [lowest]), event]
                continue
            for question in questions:
                return Refusal(
                    Code.SPECIALIZED,
                    f"{event.function} asks for {asked(question)}; with another answer it may run other code",
                    (site.region.value.name,),
                )
        return None

    def _between_reads(self, site: Site, lowest: Event | None) -> list[Event]:
        """Calls that hand on the region's input and may give another value, where it is read more than once."""
        root = site.region.root
        if lowest is None or sum(root in self.found.ops[n].sources for n in site.region.form.ops) < 2:
            return []
        calls: list[Event] = list(dict.fromkeys(root.meta.get("through", ())))
        if sum(n is root for n in _event_inputs(lowest)) < 2:
            calls = [e for e in calls if lowest in e.ancestors()]
        made = set(root.meta["event"].ancestors())
        return [e for e in calls if e is not lowest and e not in made]

    def _in_line(self, site: Site, event: Event) -> bool:
        """Whether the text of the method around a chain of layers shows that they always run one after the other."""
        if any(q.what == VALUE for q in event.questions):
            return False  # a test that reads nothing but the module's attributes may be a test of a buffer
        items: list[fx.Node | Event] = []
        for node in sorted((*site.onpath, site.carrier), key=self.reads.position.__getitem__):
            item: fx.Node | Event = node
            around: Event | None = node.meta["event"]
            while around is not event:
                if around is None:
                    return False
                item, around = around, around.parent
            if item not in items:
                items.append(item)
        wheres = [i.where if isinstance(i, Event) else i.meta.get("where") for i in items]
        function = inspect.getattr_static(type(event.module), event.method, None)
        known = [w for w in wheres if w is not None]
        return (
            not site.dead
            and len(known) == len(wheres)
            and function is not None
            and straight(function, known, event.module._modules)
        )


def _is_layer(op: Op) -> bool:
    return isinstance(op, Affine) and op.layer


def _event_inputs(event: Event) -> list[fx.Node]:
    return list(nodes_in(event.args)) + list(nodes_in(event.kwargs))


def _plain_forward(module: nn.Module) -> bool:
    """Whether a layer computes with its `weight` and `bias` as torch.nn does."""
    if calls_itself(type(module)) is not None or "forward" in vars(module):
        return False
    return type(module).forward in {
        nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward,
        nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward,
    }  # fmt: skip


def _is_transposed(op: Op) -> bool:
    return isinstance(op, Affine) and op.layer and op.shape.transposed is not None


def _weight_of(node: fx.Node, found: Analysis) -> Tensor | None:
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
