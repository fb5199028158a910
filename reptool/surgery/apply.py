"""Apply: write a worked-out surgery into a model. Nothing here can fail for a reason that was not checked before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.computed_weights import computed_names, set_bare, set_plain
from reptool.ir.paths import is_below
from reptool.ir.trace import all_events
from reptool.models.copies import as_values
from reptool.passages.norm_affine import TENSORS
from reptool.rewrite.answers import told_otherwise
from reptool.rewrite.lower import new_layer, set_values
from reptool.rewrite.method_source import refusing_methods
from reptool.rewrite.other_graphs import graphs_of, settle
from reptool.runtime.absorbed import Absorbed, names_lost
from reptool.runtime.expect import ASKED, FUSED, KEPT
from reptool.runtime.hooks import set_guard
from reptool.runtime.method import Method
from reptool.runtime.originals import keep
from reptool.runtime.state import Folded, set_folded
from reptool.runtime.subclass import derive
from reptool.surgery.conversions import set_class, silence
from reptool.surgery.gating import emptied, gone_with, set_gates
from reptool.surgery.graph_modules import rewrite_graph_module
from reptool.surgery.site import Site, Surgery
from reptool.surgery.spec import check_gates
from reptool.surgery.traced import Traced
from reptool.surgery.units import Unit


def write(model: nn.Module, unit: Unit, values: dict[Site, tuple[Tensor, Tensor | None]]) -> None:
    """Carry out the surgery of a unit on `model`, with weight and bias of each region's layer."""
    prefix, surgery = unit.prefix, unit.surgery
    traced = Traced(unit.trace, unit.found, set(), {}, set())
    root = model.get_submodule(prefix)
    before = _tensor_names(root, surgery)
    paths, graphs = _aliases(root), graphs_of(root) if surgery.sites else {}
    memo = as_values(root) if surgery.keeping else {}
    kept = {p: keep(root.get_submodule(p), k.whole, k.parts, memo) for p, k in surgery.keeping.items()}
    asked = {p: _attributes(root.get_submodule(p), names) for p, names in surgery.read.items()}
    slots = {s.slot: s for s in surgery.sites if s.slot is not None}
    earlier = {p: _answered(root.get_submodule(p), site) for p, site in slots.items()}
    _put_layers(root, surgery, values, paths)
    for path in slots:
        vars(root.get_submodule(path))[FUSED] = True
    _put_markers(root, surgery, traced, paths)
    for path, attributes in asked.items():
        held = vars(root.get_submodule(path))
        held[ASKED] = tuple(n for n in attributes if n not in held)
        held.update({n: attributes[n] for n in held[ASKED]})
    for path in surgery.bare:
        _set_bare(root.get_submodule(path))
    for path, rank in surgery.guards.items():
        set_guard(root.get_submodule(path), rank)
    _put_methods(root, surgery)
    _empty(root, surgery)
    for path, (names, others, methods) in earlier.items():
        layer = root.get_submodule(path)
        gone = sorted({n for n in names if not hasattr(layer, n)} | others)
        own = [n for n in methods if layer._parameters.get(n) is not None]
        if gone or own:
            set_class(layer, derive(type(layer), refusing_methods(gone, own)))
    for path, originals in kept.items():
        root.get_submodule(path).add_module(KEPT, originals)
    set_gates(root, traced, surgery)
    check_gates(root, surgery, traced)
    for site in surgery.sites:
        _say_what_is_folded(root, site, traced, before[site])
    settle(graphs)
    silence(model, prefix, surgery)


def _answered(module: nn.Module, site: Site) -> tuple[list[str], set[str], list[str]]:
    """Names that a module answers for whose place a layer takes; those answered otherwise; methods named as tensors."""
    computed = set(computed_names(module))
    if site.reuse:
        return (list(names_lost(module)) if computed else []), computed, []
    methods = [n for n in TENSORS if inspect.isroutine(getattr(type(module), n, None))]
    return list(names_lost(module)), computed | told_otherwise(module, site.shape), methods


def _set_bare(norm: nn.Module) -> None:
    """Take scale and shift off a norm: its own code finds none, and who asks for them hears where they are."""
    with torch.no_grad():
        lost = [n for n in TENSORS if getattr(norm, n, None) is not None]
    set_bare(norm)
    set_class(norm, derive(type(norm), (*refusing_methods(lost, lost), _BARE)))


def _put_layers(
    root: nn.Module,
    surgery: Surgery,
    values: Mapping[Site, tuple[Tensor, Tensor | None]],
    paths: dict[str, list[str]],
) -> None:
    for site in surgery.sites:
        weight, bias = values[site]
        if site.slot is None:
            _set_functional(root.get_submodule(site.owner), site.names, weight, bias)
        elif site.reuse:
            layer = root.get_submodule(site.slot)
            set_plain(layer)
            set_values(layer, weight, bias, layer.weight)  # type: ignore[arg-type]
        else:
            _put(root, paths, site.slot, new_layer(site.shape, weight, bias))


def _put_markers(root: nn.Module, surgery: Surgery, traced: Traced, paths: dict[str, list[str]]) -> None:
    replaced, into, asked = gone_with(surgery), dict[str, str](), dict[str, set[str]]()
    for site in surgery.sites:
        for path in _owners(site, traced):
            into.setdefault(path, "" if site.slot is None else traced.trace.place(site.slot))
    for setting in (s for e in all_events(traced.trace.top) for s in e.settings):
        asked.setdefault(setting.path, set()).add(setting.name)
    for path in [p for p in surgery.identities if not is_below(p, replaced)]:
        module, place = root.get_submodule(path), traced.trace.place(path)
        _put(root, paths, path, Absorbed(module, place, into.get(path, ""), asked.get(path, ())))


def _put_methods(root: nn.Module, surgery: Surgery) -> None:
    for path, methods in surgery.methods.items():
        module = root.get_submodule(path)
        for method in methods.values():
            for name in method.buffers:
                if not hasattr(module, name):
                    module.register_buffer(name, surgery.constants[name].detach().clone(), persistent=False)
        dropped = _drop(module, path, surgery.dropped)
        if isinstance(module, fx.GraphModule):
            rewrite_graph_module(module, tuple(methods.values()))
        else:
            written = (*methods.values(), *((*refusing_methods(dropped), _SHOWN) if dropped else ()))
            set_class(module, derive(type(module), written, path in surgery.plain))


def _empty(root: nn.Module, surgery: Surgery) -> None:
    """Take folded tensors away from modules whose code stays: only others read them, and they are loud about it."""
    for path in sorted(emptied(surgery)):
        module = root.get_submodule(path)
        dropped = _drop(module, path, surgery.dropped)
        set_class(module, derive(type(module), (*refusing_methods(dropped), _SHOWN), path in surgery.plain))


_SHOWN = Method(
    "extra_repr",
    "def extra_repr(self):\n    try:\n        return _original(self)\n    except AttributeError:\n        return ''\n",
)
"""What a module shows of itself, where that may have been taken away."""
_BARE = Method("extra_repr", "def extra_repr(self):\n    return f'{_original(self)}, absorbed=True'\n")
"""What a norm shows of itself whose scale and shift other layers took up."""


def _attributes(module: nn.Module, names: set[str]) -> dict[str, Any]:
    return {n: getattr(module, n) for n in names if hasattr(module, n)}


def _tensor_names(root: nn.Module, surgery: Surgery) -> dict[Site, set[str]]:
    """Which names of a layer's tensors the module at each place answers for, some with a tensor that it computes."""
    modules = {s: root.get_submodule(s.owner if s.slot is None else s.slot) for s in surgery.sites}
    names = {s: ("weight", "bias") if s.slot is not None else s.names for s in surgery.sites}
    return {s: {n for n in names[s] if n is not None and getattr(m, n, None) is not None} for s, m in modules.items()}


def _say_what_is_folded(root: nn.Module, site: Site, traced: Traced, before: set[str]) -> None:
    """Mark a layer whose weight has the name of one of the original."""
    weight, bias = site.names if site.slot is None else ("weight", "bias")
    module = root.get_submodule(site.owner if site.slot is None else site.slot)
    if weight not in before or module._parameters.get(weight) is None:
        return
    owners = sorted({o for n in site.region.form.ops for o in traced.found.ops[n].owners})
    while len({o.partition(".")[0] for o in owners}) == 1 and all("." in o for o in owners):
        owners = [o.partition(".")[2] for o in owners]
    text = ", ".join(owners)
    held = tuple(n for n in (weight, bias) if n is not None and module._parameters.get(n) is not None)
    place = traced.trace.place(site.owner if site.slot is None else site.slot)
    set_folded(module, Folded(text, held, bias if bias in held else None, "" if place == "<root>" else place))


def _aliases(root: nn.Module) -> dict[str, list[str]]:
    first: dict[int, list[str]] = {}
    out: dict[str, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names = first.setdefault(id(module), [])
        names.append(name)
        out[name] = names
    return out


def _owners(site: Site, traced: Traced) -> set[str]:
    """Paths of the modules whose work a region's layer does."""
    found = {o for n in site.region.form.ops for o in traced.found.ops[n].owners}
    return found | {e.path for n in site.region.form.ops for e in n.meta["event"].ancestors() if e.parent is not None}


def _put(root: nn.Module, paths: dict[str, list[str]], path: str, module: nn.Module) -> None:
    for name in paths.get(path, [path]):
        owner, _, attribute = name.rpartition(".")
        root.get_submodule(owner)._modules[attribute] = module


def _set_functional(owner: nn.Module, names: tuple[str, str | None], weight: Tensor, bias: Tensor | None) -> None:
    for name, value in zip(names, (weight, bias), strict=True):
        if name is None:
            continue
        for table in (owner._buffers, owner._modules, owner.__dict__):
            table.pop(name, None)
        owner.register_parameter(name, None if value is None else nn.Parameter(value))


def _drop(module: nn.Module, path: str, dropped: set[str]) -> tuple[str, ...]:
    """Take tensors away that nothing reads any more."""
    gone: list[str] = []
    for table in (module._parameters, module._buffers):
        for name in list(table):
            if (f"{path}.{name}" if path else name) in dropped:
                del table[name]
                gone.append(name)
    return tuple(sorted(gone))
