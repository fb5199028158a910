"""What a surgery may hold, checked where `REPTOOL_CHECK=1` is set (see `reptool.ir.spec`).

Each operation of a region lies on the way to its layer, off it, or is the layer. Regions with one slot are the same
computation. Whatever a surgery names is there: slots, owners, absorbed modules, methods, tensors that go away. A module
whose place a layer takes is not absorbed as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reptool.ir.spec import checking, failed
from reptool.surgery.site import Site, Surgery
from reptool.surgery.traced import Traced


def check_surgery(surgery: Surgery, traced: Traced) -> Surgery:
    """The surgery that was worked out, checked.

    Raises:
        SpecError: a rule does not hold.
    """
    if checking():
        for problem in (*_sites(surgery, traced), *_named(surgery, traced)):
            raise failed("planned", problem)
    return surgery


def _sites(surgery: Surgery, traced: Traced) -> Iterator[str]:
    slots: dict[str, Site] = {}
    for site in surgery.sites:
        parts = [*site.onpath, *site.dead, site.carrier]
        if len(parts) != len(set(parts)) or set(parts) != site.region.form.ops:
            yield f"the way through the region of {site.region.value.name} is not what it consists of"
        if site.slot is None:
            continue
        if site.slot in surgery.identities:
            yield f"{site.slot!r} holds a layer and is absorbed"
        first = slots.setdefault(site.slot, site)
        if first is not site and traced.signature(first) != traced.signature(site):
            yield f"{site.slot!r} holds two layers"


def _named(surgery: Surgery, traced: Traced) -> Iterator[str]:
    modules = dict(traced.trace.root.named_modules(remove_duplicate=False))
    held = (s.slot if s.slot is not None else s.owner for s in surgery.sites)
    for path in (*held, *surgery.identities, *surgery.methods, *surgery.guards, *surgery.bare, *surgery.plain):
        if path not in modules:
            yield f"there is no module at {path!r}"
    for path, methods in surgery.methods.items():
        for name in methods:
            if not hasattr(type(modules.get(path)), name):
                yield f"the module at {path!r} has no method {name!r}"
    for tensor in surgery.dropped:
        owner, _, name = tensor.rpartition(".")
        module: Any = modules.get(owner)
        held_there = () if module is None else (*module._parameters, *module._buffers, *module._modules)
        if name not in held_there:
            yield f"there is nothing at {tensor!r}"
