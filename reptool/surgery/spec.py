"""What a surgery may hold, checked where `REPTOOL_CHECK=1` is set (see `reptool.ir.spec`).

Each operation of a region lies on the way to its layer, off it, or is the layer. Regions with one slot are the same
computation. Whatever a surgery names is there: slots, owners, absorbed modules, methods, tensors that go away. A module
whose place a layer takes is not absorbed as well.

Once it is written, each module that computes something else than before has a gate, unless its own call holds all that
makes the change undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.spec import checking, failed
from reptool.rewrite.method_source import only_checks
from reptool.runtime.gates.marker import GATE
from reptool.surgery.gating import changes, kin_of, lowest_of
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


def check_gates(root: nn.Module, surgery: Surgery, traced: Traced) -> None:
    """Check a model that a surgery was carried out on.

    Raises:
        SpecError: a module computes something else than before, and nothing stops code that runs it by itself.
    """
    if not checking():
        return
    written = dict(root.named_modules(remove_duplicate=False))
    kin, touching = kin_of(surgery.sites), dict[str, list[Site]]()
    for site in surgery.sites:
        for path in _touched(site, traced):
            touching.setdefault(path, []).append(site)
    for path, before in traced.modules.items():
        now = written.get(path)
        if now is None or GATE in vars(now) or not _is_another(path, before, now, surgery):
            continue
        for site in touching.get(path, ()):
            if site.slot == path and not changes(traced, site):
                continue
            lowest = lowest_of(*kin[site])
            if not f"{lowest.path}.".startswith(f"{path}." if path else ""):
                raise failed("written", f"{path!r} computes a part of {site.region.value.name} and has no gate")


def _is_another(path: str, before: nn.Module, now: nn.Module, surgery: Surgery) -> bool:
    """Whether the module at a path computes something else by itself."""
    method = surgery.methods.get(path, {}).get("forward")
    if path in surgery.identities or (method is not None and not only_checks(method) and not method.raises):
        return True
    held, left = ({**m._parameters, **m._buffers} for m in (before, now))  # a tensor that is gone raises by itself
    return any(n in left and not _same(tensor, left[n]) for n, tensor in held.items())


def _same(old: Tensor | None, new: Tensor | None) -> bool:
    if old is None or new is None:
        return old is new
    return old is new or (old.shape == new.shape and (old.is_meta or torch.equal(old, new)))


def _touched(site: Site, traced: Traced) -> set[str]:
    """The modules that compute what a region holds, or in whose code it is computed."""
    owners = {o for n in site.region.form.ops for o in traced.found.ops[n].owners}
    owners |= {o.rpartition(".")[0] for o in owners if "." in o}
    events = {e.path for n in site.region.form.ops for e in n.meta["event"].ancestors()}
    return owners | events | {site.slot if site.slot is not None else site.owner}
