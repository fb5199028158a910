"""Inputs of a model: the caller's examples as arguments, and placeholders for them or for unknown inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reptool.errors import InputError
from reptool.frontends.given import hint_for, instead_of_inputs
from reptool.ir.trace import Input, fake
from reptool.runtime.containers import leaves, mapped, parts, with_parts


def example_arguments(example_inputs: Any, model: nn.Module) -> tuple[tuple[Any, ...] | None, dict[str, Any]]:
    """Example inputs as positional and keyword arguments.

    Raises:
        InputError: not a tensor, tuple, list or dict, or it does not fit the forward's signature.
    """
    if example_inputs is None:
        return None, {}
    if isinstance(example_inputs, Tensor):
        args: tuple[Any, ...] = (example_inputs,)
        kwargs: dict[str, Any] = {}
    elif isinstance(example_inputs, (tuple, list)):
        args, kwargs = tuple(example_inputs), {}
    elif isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    else:
        raise InputError(instead_of_inputs(example_inputs))
    if isinstance(example_inputs, torch.Size):
        raise InputError(hint_for(example_inputs))
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        hint = hint_for(example_inputs)
        raise InputError(hint or f"example_inputs do not fit {type(model).__name__}.forward: {error}") from error
    return args, kwargs


def check_inputs_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the model on the example inputs.

    Raises:
        InputError: the model does not accept them.
    """
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except Exception as error:
        hint = hint_for(args if args else kwargs)
        raise InputError(
            f"{hint + '; ' if hint else ''}the model does not run on example_inputs: {type(error).__name__}: {error}"
        ) from error


def unknown_inputs(module: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Placeholders for the parameters a forward must be given."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    named = [p for p in parameters if p.default is p.empty and p.kind is p.KEYWORD_ONLY]
    if not required and not named and parameters:
        first = parameters[0]
        if first.kind is first.VAR_POSITIONAL:
            return (Input(first.name),), {}
        return ((), {first.name: Input(first.name)}) if first.kind is first.KEYWORD_ONLY else ((Input(first.name),), {})
    return tuple(Input(p.name) for p in required), {p.name: Input(p.name) for p in named}


def placeholders(value: Any, name: str) -> Any:
    """Example inputs as placeholders that know what they stand for."""
    if isinstance(value, Tensor):
        return Input(name or "input", partial(fake, value.detach()))
    held = parts(value)
    if held is None or not any(isinstance(v, Tensor) for v in leaves(value)):
        return mapped(value, lambda v: v)
    names = [f"{name}_{s.name}".strip("_") if isinstance(s.name, (int, str)) else name for s, _ in held]
    return with_parts(value, [placeholders(v, n) for n, (_, v) in zip(names, held, strict=True)])
