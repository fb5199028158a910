"""Wrong kinds of arguments (a class, a state dict, a path), and the sentence that says what to give instead."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ParamSpec, TypeVar

import numpy
import torch
from torch import Tensor, nn

from reptool.errors import InputError, ReptoolError, UnsupportedModelError
from reptool.pysource.module_info import stock_forward
from reptool.runtime.containers import parts

P = ParamSpec("P")
R = TypeVar("R")


def names_itself(function: Callable[P, R]) -> Callable[P, R]:
    """Let what a public function raises say which function it was: ``explain: unknown rules ['fold']; ...``."""
    name = function.__name__

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ReptoolError as error:
            said = str(error)
            if not said.startswith(name) and not hasattr(error, "_reptool_caller"):
                error.args = (f"{name}: {said}", *error.args[1:])
            error._reptool_caller = name  # type: ignore[attr-defined]  # what calls it is no news
            raise

    return called


def check_is_module(model: Any, caller: str) -> None:
    """Raise for what is no module, with what to do instead.

    >>> check_is_module({"weight": torch.ones(2)}, "deploy")
    Traceback (most recent call last):
    reptool.errors.UnsupportedModelError: deploy takes a model, got a state dict of 1 tensors; build the model, ...
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"{caller} takes a model, got {_instead_of_a_model(model, caller)}")


def _instead_of_a_model(given: Any, caller: str) -> str:
    load = f"build the model, then model.load_state_dict(...) and {caller}(model.eval())"
    if isinstance(given, type):
        return f"the class {given.__name__}; make one of it: {caller}({given.__name__}(...).eval())"
    if isinstance(given, Mapping):
        tensors = sum(isinstance(v, Tensor) for v in given.values())
        if given and tensors == len(given):
            return f"a state dict of {tensors} tensors; {load}"
        if any(isinstance(v, nn.Module) for v in given.values()):
            return f"a {type(given).__name__} of modules; give one of them"
        return f"a {type(given).__name__}; if it is a checkpoint, {load}"
    if isinstance(given, (str, bytes, os.PathLike)):
        return f"the path {os.fspath(given)!r}; {load}"
    if isinstance(given, (Tensor, numpy.ndarray)):
        return f"a {type(given).__name__}; the model comes first, then its example_inputs"
    if isinstance(given, (list, tuple)) and given and all(isinstance(v, nn.Module) for v in given):
        return f"a {type(given).__name__} of modules; give nn.Sequential(*modules), or one after the other"
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return f"the function {name}; put what it computes into the forward of an nn.Module"
    return f"a {type(given).__name__}; give an nn.Module"


def check_weights(model: nn.Module) -> None:
    """Raise for parameters and buffers that are arrays, and for arrays in their place in layers of torch."""
    for path, module in model.named_modules():
        own = vars(module).items() if stock_forward(module) else ()
        for name, value in (*module._parameters.items(), *module._buffers.items(), *own):
            if isinstance(value, numpy.ndarray):
                full = f"{path}.{name}" if path else name
                raise InputError(f"{full!r} is a numpy array; give nn.Parameter(torch.from_numpy(array))")


def check_parts(what: str, names: Iterable[Any], model: nn.Module) -> None:
    """Raise for what names no part of a model: neither a pattern on paths nor a class of modules.

    Args:
        what: the argument's name.
        names: what it holds.
        model: whose parts are meant.
    """
    for name in names:
        if isinstance(name, str) or (isinstance(name, type) and issubclass(name, nn.Module)):
            continue
        if isinstance(name, nn.Module):
            path = next((p for p, m in model.named_modules() if m is name and p), "")
            own = f"its path {path!r}" if path else "its path in the model"
            raise InputError(f"{what} was given a {type(name).__name__} itself; give {own} or {type(name).__name__}")
        shown = name.__name__ if isinstance(name, type) else f"a {type(name).__name__} ({name!r})"
        raise InputError(f"{what} was given {shown}; it takes patterns on paths of modules, and classes of modules")


def nothing_matches(what: str, name: str | type, model: nn.Module, paths: list[str]) -> InputError:
    """The error for a name that no part of a model has, with names that parts have."""
    if isinstance(name, type):
        kinds = dict.fromkeys(type(m).__name__ for m in model.modules())
        near = get_close_matches(name.__name__, kinds, 3, 0.5) or list(kinds)[:3]
        shown = name.__name__
    else:
        near = get_close_matches(name, paths, 3, 0.5) or paths[:3]
        shown = f"pattern {name!r}"
    such = f"; there are {', '.join(near)}, ..." if near else ""
    return InputError(f"{what} {shown} matches no module of {type(model).__name__}{such}")


def instead_of_inputs(given: Any) -> str:
    """What was given as example inputs, and what to give in its place, for what no model takes."""
    if isinstance(given, numpy.ndarray):
        return f"example_inputs is a numpy array of shape {given.shape}; give torch.from_numpy(array)"
    if isinstance(given, type):
        return f"example_inputs is the class {given.__name__}; give tensors"
    if isinstance(given, torch.utils.data.DataLoader):
        return "example_inputs is a DataLoader; give the inputs in one of its batches: next(iter(loader))"
    if isinstance(given, (str, bytes, os.PathLike)):
        return f"example_inputs is a {type(given).__name__} ({given!r}); give tensors such as the model is called with"
    return (
        f"example_inputs is a {type(given).__name__}; "
        "give a tensor, a tuple of positional or a dict of keyword arguments"
    )


def hint_for(given: Any, path: str = "example_inputs") -> str:
    """'' or what in inputs that a model does not accept is taken for something else.

    >>> hint_for((1, 3, 8, 8))
    'example_inputs is a shape; give a tensor of it: torch.randn(1, 3, 8, 8)'
    """
    if _is_shape(given):
        return f"{path} is a shape; give a tensor of it: torch.randn{tuple(given)}"
    if isinstance(given, numpy.ndarray):
        return f"{path} is a numpy array; give a tensor: torch.from_numpy(array)"
    return next((hint for step, part in parts(given) or () if (hint := hint_for(part, f"{path}{step}"))), "")


def _is_shape(value: Any) -> bool:
    whole = isinstance(value, (tuple, list)) and all(type(n) is int for n in value)
    return whole and len(value) > 1
