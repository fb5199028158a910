"""Placement: the carrier of a region, whose place the fused layer takes, and what such a place has to offer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from reptool.ir.nodes import is_inert
from reptool.ir.ops import Affine, Op, View
from reptool.ir.trace import Event
from reptool.lift.layers.transposed import asks_for_size
from reptool.plan.select import Region
from reptool.pysource.module_info import calls_itself
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry, Place, geometry_of, layer_of
from reptool.surgery.placing.asked import asked_around, event_inputs
from reptool.surgery.placing.dtypes import dtypes_refused
from reptool.surgery.placing.functional import functional, weight_of
from reptool.surgery.placing.side_by_side import handed_on
from reptool.surgery.placing.term import needed_there
from reptool.surgery.placing.way import carriers, way_of, written_between
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def site_of(traced: Traced, region: Region) -> Site | Refusal:
    """The best place for a region's layer, or why there is none."""
    ops = region.form.ops
    shape = layer_of(region.form)
    if isinstance(shape, Refusal):
        return shape.at(region.value.name)
    problem = _owners_refused(traced, ops)
    if problem is not None:
        return problem
    best: tuple[int, Site] | None = None
    position = traced.reads.position
    last: Refusal | None = None
    for carrier in sorted(carriers(traced, ops), key=position.__getitem__):
        found = placed(traced, region, carrier, shape)
        refused = found if isinstance(found, Refusal) else dtypes_refused(traced, found)
        if isinstance(found, Refusal) or refused is not None:
            last = last or refused
            continue
        rank = _rank(found)
        if best is None or rank < best[0]:
            best = (rank, found)
    if best is None:
        return last or Refusal(
            Code.METHOD, "no layer in this region has a place for the fused one", (region.value.name,)
        )
    site = best[1]
    refused = asked_around(traced, site)
    return refused if refused is not None else site


def _rank(site: Site) -> int:
    return (0 if site.reuse else 2) + (0 if site.slot is not None else 4) + (1 if site.event is not None else 0)


def _owners_refused(traced: Traced, ops: Iterable[fx.Node]) -> Refusal | None:
    for node in ops:
        op = traced.found.ops[node]
        for owner in op.owners:
            others = traced.tied.get(owner)
            if others:
                shared = f"{traced.trace.place(owner)!r} is shared with {', '.join(map(repr, sorted(others)))}"
                return Refusal(Code.SHARED, f"the parameter {shared}", (node.name,))
    return None


def placed(traced: Traced, region: Region, carrier: fx.Node, shape: Geometry) -> Site | Refusal:
    """The region's layer at the place of one carrier, or why it cannot stand there."""
    way = way_of(traced, region, carrier)
    dead = [n for n in region.form.ops if n not in way and n is not carrier]
    position = traced.reads.position
    if any(isinstance(traced.found.ops[n], View) and position[n] < position[carrier] for n in way):
        return Refusal(Code.LAYOUT, "the axes are rearranged in front of this layer", (carrier.name,))
    op = traced.found.ops[carrier]
    if shape.kind == "deformable" and not (isinstance(op, Affine) and op.beside):
        return Refusal(Code.METHOD, "a layer in this place would not know where to read", (carrier.name,))
    sized = [n for n in region.form.ops if asks_for_size(n)]
    others = [n for n in region.form.ops if n is not carrier and _resizes(traced.found.ops[n])]
    if sized and (sized != [carrier] or others):
        sentence = "a layer that is told what size to give is called by itself, or with what keeps that size"
        return Refusal(Code.METHOD, sentence, (carrier.name,))
    site = Site(region, carrier, None, shape, False, way, dead)
    written = written_between(traced, region, way, carrier) or needed_there(traced, site) or handed_on(traced, site)
    if written is not None:
        return written
    if carrier.op == "call_module":
        path = str(carrier.target)
        module = carrier.meta["module"]
        reuse = geometry_of(module) == shape and _plain_forward(module)
        if not path and not reuse:
            return Refusal(Code.METHOD, "the model itself is this layer", (carrier.name,))
        return replace(site, slot=path, reuse=reuse, place=Place.of(_weight_near(traced, path)))
    held = weight_of(carrier, traced.found)
    if held is not None and not held.is_floating_point():
        return Refusal(Code.DTYPE, f"the layer computes with {held.dtype} numbers", (carrier.name,))
    event = None if traced.found.facts.follows(carrier) else _whole_event(traced, site)
    if (
        event is not None
        and shape.kind not in ("transposed", "deformable")
        and weight_of(carrier, traced.found) is not None
    ):
        weight = weight_of(carrier, traced.found)
        assert weight is not None
        return replace(site, slot=event.path, event=event, place=Place.of(weight))
    if shape.before or shape.behind or shape.parts:
        sentence = "a layer of several resolutions stands in the place of a module, and this one is a function"
        return Refusal(Code.METHOD, sentence, (carrier.name,))
    return functional(traced, site)


def _weight_near(traced: Traced, path: str) -> Tensor:
    """A tensor of the dtype and device that a layer at `path` is to have: its own, or the nearest around it."""
    while True:
        module = traced.modules[path]
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor
        if not path:
            return torch.zeros(())
        path = path.rpartition(".")[0]


def _whole_event(traced: Traced, site: Site) -> Event | None:
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
        inputs = list(event_inputs(event))
        if len(event.args) != 1 or event.kwargs or len(inputs) != 1:
            break
        entry = inputs[0]
        if entry is not site.region.root and entry not in site.onpath:
            break
        inner = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
        return None if any(n not in ops for n in inner) or event.questions or event.effects else event
    return None


def _plain_forward(module: nn.Module) -> bool:
    """Whether a layer computes with its `weight` and `bias` as torch.nn does."""
    if calls_itself(type(module)) is not None or "forward" in vars(module):
        return False
    return type(module).forward in {
        nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward,
        nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward,
    }  # fmt: skip


def _resizes(op: Op) -> bool:
    """Whether an operation is a map that may give another size than it reads."""
    return isinstance(op, Affine) and (op.moves or not op.shape.is_pointwise)
