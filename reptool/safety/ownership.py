"""Ownership: tensors and modules with more than one owner, and modules with hooks of the user's."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from reptool.pysource.module_info import foreign_hooks


@dataclass
class Ownership:
    """Who else owns or watches a model's tensors and modules.

    Args:
        tied: path of a tensor, or of the module that holds it -> the other paths of shared tensors.
        hooked: paths of modules with hooks of the user's.
        held: paths of modules that are also kept in plain attributes.
    """

    tied: dict[str, set[str]]
    hooked: set[str]
    held: set[str]

    def under(self, prefix: str) -> Ownership:
        """The same for a submodule, by its own paths."""
        return Ownership(_under(self.tied, prefix), set(_strip(self.hooked, prefix)), set(_strip(self.held, prefix)))


def ownership(model: nn.Module) -> Ownership:
    """Tensors and modules with more than one owner, and modules with hooks of the user's."""
    holders: dict[int, list[tuple[str, str]]] = {}
    hooked: set[str] = set()
    for path, module in model.named_modules():
        if foreign_hooks(module) or module._backward_hooks or module._backward_pre_hooks:
            hooked.add(path)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                holders.setdefault(id(tensor), []).append((path, f"{path}.{name}" if path else name))
    tied: dict[str, set[str]] = {}
    for places in holders.values():
        if len(places) > 1:
            for path, full in places:
                others = {f for p, f in places if f != full}
                tied.setdefault(path, set()).update(others)
                tied.setdefault(full, set()).update(others)
    kept = {id(m) for module in model.modules() for v in vars(module).items() for m in _kept(*v)}
    return Ownership(tied, hooked, {p for p, m in model.named_modules(remove_duplicate=False) if id(m) in kept})


def _kept(name: str, value: Any, depth: int = 0) -> Iterator[nn.Module]:
    """Modules held by a plain attribute: in containers, partials and bound methods."""
    if name == "_modules" or depth > 4:
        return
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _kept("", v, depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for v in value:
            yield from _kept("", v, depth + 1)
    elif isinstance(value, functools.partial):
        yield from _kept("", (value.func, value.args, value.keywords), depth + 1)
    elif inspect.ismethod(value):
        yield from _kept("", value.__self__, depth + 1)
    elif inspect.isfunction(value):
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):
                yield from _kept("", cell.cell_contents, depth + 1)


def _strip(paths: Iterable[str], prefix: str) -> Iterable[str]:
    lead = f"{prefix}." if prefix else ""
    return (p[len(lead) :] for p in paths if p.startswith(lead))


def _under(tied: dict[str, set[str]], prefix: str) -> dict[str, set[str]]:
    lead = f"{prefix}." if prefix else ""
    return {p[len(lead) :]: others for p, others in tied.items() if p.startswith(lead)}
