"""Guards that deployed methods call: the arguments and settings that they were written for, or `SpecializedError`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from reptool.errors import SpecializedError
from reptool.runtime.snapshot import same


def _sealed(where: str) -> None:
    """The body of a method that deploying left without its parts."""
    raise SpecializedError(
        f"{where} uses layers one by one that deploy() fused, which would give other values; exclude them "
        "(deploy(model, exclude=...)), or call it on the original model"
    )


def _expect(name: str, value: Any, *seen: Any) -> None:
    """The guard of a deployed method: an argument it was specialized for."""
    if isinstance(value, fx.Proxy):  # a graph is being made of the method: the guard belongs into it
        value.tracer.create_proxy("call_function", _expect, (name, value, *seen), {})
        return
    if torch.is_tensor(value) or value not in seen:
        traced = seen[0]
        shown = f"a tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else repr(value)
        own = name.startswith("self.")
        what = "set it before deploying" if own else f"deploy the model with example_inputs that pass {name}"
        raise SpecializedError(
            f"this method was deployed for {name}={traced!r} and called with {name}={shown}; {what}, "
            "or exclude this module"
        )


def _expect_same(name: str, value: Any, seen: Any) -> None:
    """The guard of a deployed method: a setting that decided what the layers which were fused compute together."""
    if isinstance(value, fx.Proxy) or same(value, seen):
        return
    was = repr(seen) if isinstance(seen, (bool, int, float, str, type(None))) else "what it was then"
    raise SpecializedError(
        f"this model was deployed with {name}={was}, and it is {_shortened(value)} now; set it before deploying, or "
        "exclude this module"
    )


def _shortened(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _expect_fused(name: str, module: Any) -> None:
    """The guard of a method that calls a fused layer: another module in its place is not what was fused."""
    if torch.compiler.is_compiling() or isinstance(module, fx.Proxy) or FUSED in module.__dict__:
        return
    raise SpecializedError(
        f"{name} holds another module than the layer that deploy() fused there; exclude it (deploy(model, "
        "exclude=...)), or use the original model or reptool.release(deployed) first"
    )


FUSED = "_reptool_fused"
"""The mark of a layer that stands for a region; what `release` leaves of it."""


def _not_set(module: Any, name: str, gone: tuple[str, ...]) -> None:
    """The guard of attributes whose tensors another layer holds since the model was deployed."""
    if name in gone:
        raise SpecializedError(
            f"{name!r} of this {type(module).__name__} was folded into another layer by deploy(), so that setting it "
            "would change nothing; set it before deploying, or exclude this module"
        )


def _expect_given(name: str, value: Any, default: Any, count: int | None) -> None:
    """The guard of an optional argument that was given when the model was deployed."""
    missing = len(value) != count if count is not None else not torch.is_tensor(value) and value is default
    if missing:
        what = f"{count} arguments in {name}" if count is not None else f"an argument {name}"
        raise SpecializedError(
            f"this method was deployed for {what}; deploy the model with example_inputs as it is called here, "
            "or exclude this module"
        )


def _bound(original: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of a method by name, the defaults included."""
    arguments = inspect.signature(original).bind(*args, **kwargs)
    arguments.apply_defaults()
    return arguments.arguments


def called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function that a graph holds as an attribute, since it has no name of its own."""
    return function(*args, **kwargs)
