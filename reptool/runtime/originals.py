"""Kept originals: the layers that a deployed method falls back to where its guard does not hold.

A module with a fallback holds the layers that were changed, as they were, under the name `reptool_original`, at their
old relative paths: ``block.reptool_original.conv.weight``. They are ordinary submodules, so that `.to()`, `.half()`,
`state_dict`, pickle and deepcopy reach them. A call that does not fit runs the original method on a twin of the module
that has them in their old places and everything else in common with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from reptool.errors import SpecializedError
from reptool.models.copies import full_copy
from reptool.runtime.expect import ASKED, FUSED, KEPT
from reptool.runtime.expect import Like as Like  # pickles of earlier releases look for it here
from reptool.runtime.gates.in_place import hooks_on, is_shaped
from reptool.runtime.gates.marker import GATE, Marker
from reptool.runtime.hooks import is_own_hook
from reptool.runtime.subclass import derive


class Kept(nn.Module):
    """What was changed inside one module, as it was: submodules, and tensors of its own.

    Args:
        origin: how the module's class is found again: the class, or the arguments of `subclass.derive`.
    """

    def __init__(self, origin: tuple[Any, ...]) -> None:
        super().__init__()
        self.origin = origin
        self.marked = True  # not so in pickles of reptool 0.1

    def train(self, mode: bool = True) -> Kept:
        """Kept layers stay in eval mode: what was fused does not follow their statistics."""
        return self

    @property
    def original(self) -> type:
        """The class that the module had."""
        found: type = derive(*self.origin) if len(self.origin) > 1 else self.origin[0]
        return found

    def twin_of(self, module: nn.Module) -> nn.Module:
        """A twin of a deployed module that computes what the original computed."""
        return _twin(module, self, vars(self).get("marked", False))


def keep(module: nn.Module, whole: Iterable[str], parts: Mapping[str, set[str]], memo: dict[int, Any]) -> Kept:
    """Copies of what is about to be changed inside `module`.

    Args:
        module: the module that gets a fallback.
        whole: paths in it of modules that are replaced.
        parts: path in it of a module whose methods or own tensors change ("" is the module itself) -> those tensors.
        memo: of `copy.deepcopy`, so that what is shared stays shared.
    """
    out = _kept(module, memo, parts.get("", set()))
    for path in sorted({*whole, *parts} - {""}):
        at, inner = out, module
        *above, name = path.split(".")
        for i, step in enumerate(above):
            inner = inner._modules[step]  # type: ignore[assignment]
            if step not in at._modules:
                at.add_module(step, _kept(inner, memo, parts.get(".".join(above[: i + 1]), set())))
            found = at._modules[step]
            if not isinstance(found, Kept):
                break  # it is kept as a whole
            at = found
        else:
            leaf = inner._modules[name]
            assert leaf is not None
            if name not in at._modules:
                at.add_module(name, full_copy(leaf, memo) if path in whole else _kept(leaf, memo, parts[path]))
    return out


def _kept(module: nn.Module, memo: dict[int, Any], tensors: set[str]) -> Kept:
    derived = type(module).__dict__.get("_reptool_derived")
    made = Kept((type(module),) if derived is None else derived)
    made.training = module.training
    for name, parameter in module._parameters.items():
        if name in tensors:
            made.register_parameter(name, copy.deepcopy(parameter, memo))
    for name, buffer in module._buffers.items():
        if name in tensors:
            made.register_buffer(name, copy.deepcopy(buffer, memo), name not in module._non_persistent_buffers_set)
    return made


def _twin(module: nn.Module, kept: nn.Module, marked: bool) -> nn.Module:
    """What a module was; one that somebody put in its place since is what the original would run.

    Args:
        module: in the deployed model.
        kept: what is kept of it.
        marked: whether what took the place of a module says so.
    """
    if not isinstance(kept, Kept):
        return _following(module, kept) if not marked or _is_ours(module, kept) else module
    if marked and not isinstance(module, kept.origin[0]):
        return module
    inside = {
        name: _twin(inner, old, marked) if inner is not None and (old := kept._modules.get(name)) is not None else inner
        for name, inner in module._modules.items()
        if name != KEPT
    }
    twin: nn.Module = object.__new__(kept.original)
    twin.__dict__ = {
        **{n: v for n, v in module.__dict__.items() if n != GATE},
        "_modules": inside,
        "_parameters": {**_others(module._parameters, kept), **kept._parameters},
        "_buffers": {**_others(module._buffers, kept), **kept._buffers},
    }
    return twin


def _following(module: nn.Module, kept: nn.Module) -> nn.Module:
    """A kept layer with the attributes that code set on the layer in its place."""
    own = vars(module)
    asked = {n: own[n] for n in own.get(ASKED, ()) if n in own and own[n] is not vars(kept).get(n)}
    if not asked:
        return kept
    made: nn.Module = object.__new__(type(kept))
    made.__dict__ = {**vars(kept), **asked}
    return made


def _is_ours(module: nn.Module, kept: nn.Module) -> bool:
    """Whether a module is what deploy() put in the place of one that is kept.

    Raises:
        SpecializedError: it is, and was changed since, which the one that is kept does not follow.
    """
    gate = vars(module).get(GATE)
    if gate is None and FUSED not in vars(module) and "_reptool_derived" not in type(module).__dict__:
        return isinstance(module, Marker)
    own = sum(map(is_own_hook, module._forward_pre_hooks.values()))
    if (gate is not None and not is_shaped(module, gate)) or hooks_on(module) - own > hooks_on(kept):
        raise SpecializedError(
            f"{gate.name if gate is not None else type(module).__name__!r} was changed or hooked after deploy() fused "
            "it, and the original layer that is kept for this call is not; exclude it (deploy(model, exclude=...))"
        )
    return True


def _others(tensors: dict[str, Any], kept: Kept) -> dict[str, Any]:
    return {n: t for n, t in tensors.items() if n not in kept._parameters and n not in kept._buffers}


def kept_modules(model: nn.Module) -> set[nn.Module]:
    """All modules that a deployed model keeps for its fallbacks."""
    return {inner for m in model.modules() if isinstance(m, Kept) for inner in m.modules()}


def kept_tensors(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that a deployed model keeps for its fallbacks alone."""
    kept = kept_modules(model)
    used = {id(t) for m in model.modules() if m not in kept for t in (*m._parameters.values(), *m._buffers.values())}
    own = {id(t): t for m in kept for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
    return [t for i, t in own.items() if i not in used]
