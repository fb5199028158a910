"""`to_linear` and `to_pointwise`: every pointwise convolution of a model as a linear layer, and the other way round.

The two are one map on two layouts (paradigm 9, `fusions/linear.py`); which of them is faster depends on the device and
the runtime. Exact for layers of torch's own with one tap, stride 1, no padding and no groups. Left alone: subclasses,
layers with hooks or parametrizations, and layers whose parameters others hold too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reptool.blocks.switched import ConvAsLinear, LinearAsConv
from reptool.frontends.given import check_is_module
from reptool.fusions.linear import linear_to_pointwise, pointwise_to_linear
from reptool.models.copies import independent_copy

M = TypeVar("M", bound=nn.Module)
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip
AXES: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


def to_linear(model: M) -> M:
    """A copy of a model whose 1x1 convolutions are linear layers.

    Args:
        model: any module, in either mode; it is not changed.

    Returns:
        A copy. Each convolution of one tap, stride 1, no padding and no groups is a
        `reptool.blocks.switched.ConvAsLinear`, of the same parameters ``weight`` (now ``[O, C]``) and ``bias``.

    Raises:
        UnsupportedModelError: this is no module, or it holds something that cannot be copied.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> [type(part).__name__ for part in to_linear(model)]
    ['ConvAsLinear', 'ReLU', 'Conv2d']
    """
    return _switched(model, "to_linear", _as_linear)


def to_pointwise(model: M) -> M:
    """A copy of a model whose linear layers are 1x1 convolutions.

    Args:
        model: any module, in either mode; it is not changed.

    Returns:
        A copy. Each linear layer is a `reptool.blocks.switched.LinearAsConv`, of the same parameters ``weight`` (now
        ``[O, C, 1]``) and ``bias``; what `to_linear` made is the convolution again that it was.

    Raises:
        UnsupportedModelError: this is no module, or it holds something that cannot be copied.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    >>> [type(part).__name__ for part in to_pointwise(model)]
    ['LinearAsConv', 'ReLU', 'LinearAsConv']
    """
    return _switched(model, "to_pointwise", _as_pointwise)


def _switched(model: M, name: str, switched: Callable[[Any], nn.Module | None]) -> M:
    """A copy with other modules where there are some."""
    check_is_module(model, name)
    made = independent_copy(model)
    holders = Counter(id(p) for m in made.modules() for p in m._parameters.values() if p is not None)
    instead: dict[int, nn.Module] = {}
    for module in list(made.modules()):
        own = [p for p in module._parameters.values() if p is not None]
        if _is_special(module) or parametrize.is_parametrized(module) or any(holders[id(p)] > 1 for p in own):
            continue
        other = switched(module)
        if other is not None:
            for key, parameter in other.named_parameters():
                parameter.requires_grad_(module.get_parameter(key).requires_grad)
            instead[id(module)] = other.train(module.training)
    for module in list(made.modules()):
        for key, part in module._modules.items():
            if part is not None:
                module._modules[key] = instead.get(id(part), part)
    found: Any = instead.get(id(made), made)
    return found


def _is_special(module: nn.Module) -> bool:
    """Whether a module has hooks, or a forward of its own."""
    return "forward" in vars(module) or any(vars(module).get(name) for name in _HOOKS)


def _as_linear(module: Any) -> nn.Module | None:
    """A pointwise convolution, or what `to_pointwise` made, as a linear layer."""
    if isinstance(module, LinearAsConv):
        made = nn.Linear(module.weight.shape[1], module.weight.shape[0], **_like(module))
        return _filled(made, module, pointwise_to_linear)
    axes = AXES.get(type(module))
    if axes is None or module.groups != 1 or not set(module.kernel_size) == set(module.stride) == {1}:
        return None
    if not isinstance(module.padding, str) and any(module.padding):
        return None
    bias = None if module.bias is None else module.bias.detach().clone()
    return ConvAsLinear(pointwise_to_linear(module.weight.detach()), bias, axes)


def _as_pointwise(module: Any) -> nn.Module | None:
    """A linear layer, or what `to_linear` made, as a pointwise convolution."""
    if isinstance(module, ConvAsLinear):
        conv: Any = next(k for k, axes in AXES.items() if axes == module.axes)
        made = conv(module.weight.shape[1], module.weight.shape[0], 1, **_like(module))
        return _filled(made, module, lambda w: linear_to_pointwise(w, module.axes))
    kind = type(module)
    if kind is not nn.Linear:
        return None
    bias = None if module.bias is None else module.bias.detach().clone()
    return LinearAsConv(linear_to_pointwise(module.weight.detach(), 1), bias)


def _like(module: Any) -> dict[str, Any]:
    return {"bias": module.bias is not None, "device": module.weight.device, "dtype": module.weight.dtype}


def _filled(made: Any, module: Any, weight: Callable[[Tensor], Tensor]) -> nn.Module:
    with torch.no_grad():
        made.weight.copy_(weight(module.weight.detach()))
        if module.bias is not None:
            made.bias.copy_(module.bias)
    found: nn.Module = made
    return found
