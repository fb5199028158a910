"""The model's own conversions (`fuse()`, `switch_to_deploy()`) where something inside was fused.

They become no-ops; one that would have changed what its module computes raises.
"""

from __future__ import annotations

import torch
from torch import nn

from reptool.rewrite.method_source import refusing_conversion
from reptool.runtime.subclass import derive, has_own_conversions
from reptool.surgery.site import Surgery


def silenced(root: nn.Module, surgery: Surgery) -> list[str]:
    """Paths of the modules whose own conversions become no-ops, since something inside of them was changed."""
    changed = {s.slot if s.slot is not None else s.owner for s in surgery.sites}
    above = {""}
    for path in changed | set(surgery.identities) | set(surgery.methods):
        while path:
            path = path.rpartition(".")[0]
            above.add(path)
    modules = dict(root.named_modules())
    return [p for p in sorted(above & set(modules)) if _converts(modules[p])]


def silence(model: nn.Module, prefix: str, surgery: Surgery) -> None:
    """The model's own conversions become no-ops on every module whose inside was changed."""
    root = model.get_submodule(prefix)
    enclosing = [model.get_submodule(prefix[:i]) for i, c in enumerate(prefix) if c == "."]
    enclosing += [model] if prefix else []
    inside = {root.get_submodule(p): surgery.conversions.get(p, ()) for p in silenced(root, surgery)}
    for module, wrong in {**{m: () for m in enclosing if _converts(m)}, **inside}.items():
        set_class(module, derive(type(module), tuple(map(refusing_conversion, wrong))))


def _converts(module: nn.Module) -> bool:
    return has_own_conversions(type(module)) and not isinstance(module, torch.fx.GraphModule)


def set_class(module: nn.Module, cls: type) -> None:
    """Change the class of a module past whatever its own ``__setattr__`` does."""
    object.__setattr__(module, "__class__", cls)
