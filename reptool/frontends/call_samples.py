"""Sample calls of a module: recorded in one real run of the model, or made up where no example inputs exist."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.trace import Input, fake
from reptool.models.copies import full_copy
from reptool.models.running import users_code
from reptool.pysource.module_info import stock_forward
from reptool.runtime.containers import parts

MADE_UP = 64  # pixels along every axis of an image nobody showed
Call = tuple[tuple[Any, ...], dict[str, Any]]


def seen_calls(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Call]:
    """The arguments of every module of the user's that one run calls always in the same way.

    Args:
        model: what is run, on a copy.
        args: example positional inputs.
        kwargs: example keyword inputs.
    """
    copied = full_copy(model)
    first: dict[str, Call] = {}
    kinds: dict[str, object] = {}
    differing: set[str] = set()

    def watch(path: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            kind = _kind((given, named))
            if kinds.setdefault(path, kind) != kind:
                differing.add(path)
            first.setdefault(path, (given, named))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    for path, module in copied.named_modules():
        if path and not stock_forward(module):
            watch(path, module)
    try:
        with torch.no_grad(), users_code():
            copied(*args, **kwargs)
    except Exception:  # what was seen until then was seen
        pass
    return {path: call for path, call in first.items() if path not in differing}


def _kind(value: Any) -> object:
    """What a call looks like apart from sizes and numbers."""
    if isinstance(value, Tensor):
        return Tensor, value.dim(), value.dtype
    if isinstance(value, (tuple, list, dict)):
        return type(value), tuple((step, _kind(v)) for step, v in parts(value) or ())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value)


def made_up(module: nn.Module, inputs: Call) -> Call | None:
    """The one unknown input of a module as an image with the channels its first layer takes, None for other modules."""
    args, kwargs = inputs
    if kwargs or len(args) != 1 or not isinstance(args[0], Input):
        return None
    for layer in module.modules():
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)):
            channels = int(str(getattr(layer, "in_channels", None) or layer.num_features))
            axes = len(getattr(layer, "kernel_size", (1, 1)))
            shape = (2, channels, *[MADE_UP] * axes)
            dtype = next((p.dtype for p in layer.parameters()), torch.float32)
            image = torch.empty(shape, dtype=dtype)
            return (Input(args[0].name, partial(fake, image)),), {}
    return None
