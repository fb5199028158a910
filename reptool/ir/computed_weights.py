"""Weights that are computed: parametrizations and the legacy hooks of weight norm, spectral norm and prune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reptool.models.copies import full_copy

_HOOKS = {"WeightNorm", "SpectralNorm", "BasePruningMethod"}


def is_weight_hook(hook: Any) -> bool:
    """Whether a forward pre-hook only recomputes a weight from other parameters of its module."""
    return any(c.__name__ in _HOOKS and c.__module__.startswith("torch.nn.utils") for c in type(hook).__mro__)


def has_computed_weight(module: nn.Module) -> bool:
    """Whether a parameter of `module` is recomputed at every call (a parametrization or a legacy hook)."""
    return _is_parametrized(module) or any(is_weight_hook(h) for h in module._forward_pre_hooks.values())


def _is_parametrized(module: nn.Module) -> bool:
    # what was absorbed raises where its attributes are asked for, and what is scripted has no dictionary
    held = next((m for name, m in module._modules.items() if name == "parametrizations"), None)
    return isinstance(held, nn.ModuleDict) and len(held) > 0


def has_weight_property(module: nn.Module) -> bool:
    """Whether a class computes its weight in a property of its own: what is written there is not what it gives."""
    if _is_parametrized(module):
        return False
    return any(isinstance(getattr(type(module), n, None), property) for n in ("weight", "bias"))


def shape_of_weight(module: nn.Module) -> tuple[int, ...]:
    """The shape of the weight that a layer computes with, which a computed one alone tells."""
    with torch.no_grad():
        weight = getattr(module, "weight", None)
    return tuple(weight.shape) if isinstance(weight, Tensor) else ()


def exact_tensors(module: nn.Module, *names: str) -> tuple[Any, ...]:
    """Tensors of a leaf module in float64, as its forward in eval mode would see them.

    Returns:
        One detached float64 tensor (or None) for each of `names`; computed weights are evaluated in float64, or, where
        their own code names another dtype and refuses that, as the model evaluates them.
    """
    with torch.no_grad():
        try:
            copied = full_copy(module).double() if has_computed_weight(module) else module
            found = computed_tensors(copied, *names)
        except Exception:  # the code that computes a weight is the user's
            found = computed_tensors(full_copy(module), *names)
    return tuple(None if t is None else t.detach().double() for t in found)


def computed_tensors(module: nn.Module, *names: str) -> list[Any]:
    """Tensors of a layer as its forward would see them; what legacy hooks compute is written into it."""
    with torch.no_grad():
        for hook in module._forward_pre_hooks.values() if has_computed_weight(module) else ():
            hook(module, ())
        return [getattr(module, n, None) for n in names]


def set_plain(module: nn.Module) -> None:
    """Take parametrizations and weight hooks off a layer; it keeps its object and a plain weight."""
    if parametrize.is_parametrized(module):
        _set_unparametrized(module)
    for key, hook in list(module._forward_pre_hooks.items()):
        if not is_weight_hook(hook):
            continue
        name = _name_of(hook)
        with torch.no_grad():
            hook(module, ())
            value = getattr(module, name).detach().clone()
        del module._forward_pre_hooks[key]
        module.__dict__.pop(name, None)
        for table in (module._parameters, module._buffers):
            for extra in [k for k in table if k.startswith(f"{name}_")]:
                del table[extra]
        module.register_parameter(name, nn.Parameter(value))


def computed_names(module: nn.Module) -> list[str]:
    """The tensors that a layer computes at every call: `set_plain` takes away what it computes them of."""
    table = module.parametrizations if parametrize.is_parametrized(module) else None
    names = list(table) if isinstance(table, nn.ModuleDict) else []
    return [*names, *(_name_of(h) for h in module._forward_pre_hooks.values() if is_weight_hook(h))]


def _name_of(hook: Any) -> str:
    return str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight"))


def _set_unparametrized(module: nn.Module) -> None:
    """Put plain parameters in the place of all parametrizations, without asking them to be invertible.

    The class that `torch.nn.utils.parametrize` made is shared by every copy of the module, the user's own among them:
    it is left as it is, and this object goes back to the class it had before.
    """
    table = module.parametrizations
    assert isinstance(table, nn.ModuleDict)
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in table}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def set_bare(norm: nn.Module) -> None:
    """Take scale and shift off a norm, which goes on saying whether it had them.

    >>> norm = nn.LayerNorm(4)
    >>> set_bare(norm)
    >>> norm.weight is None, norm.elementwise_affine
    (True, True)
    """
    set_plain(norm)
    for name in ("weight", "bias"):
        if name in norm._parameters:
            norm._parameters[name] = None
