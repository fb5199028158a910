"""What the functions on weights are given: tensors, and no arrays or lists of numbers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy
from torch import Tensor

from reptool.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def takes_tensors(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse anything else for parameters that are annotated as a tensor or as a sequence of them.

    >>> @takes_tensors
    ... def doubled(weight: "Tensor") -> "Tensor":
    ...     return weight * 2
    >>> doubled([1.0])
    Traceback (most recent call last):
    reptool.errors.InputError: doubled: weight is a list; give a torch.Tensor
    """
    names = list(inspect.signature(function).parameters)
    kinds = {n: str(a) for n, a in function.__annotations__.items() if n != "return" and "Tensor" in str(a)}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if not isinstance(value, Tensor) and name in kinds:
                _check(function.__name__, name, value, kinds[name].startswith("Sequence"))
        return function(*args, **kwargs)

    return checked


def _check(function: str, name: str, value: Any, several: bool) -> None:
    """Raise for what is no tensor; that one is missing, and that a sequence has none, the functions say themselves."""
    if several and isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            _check(function, f"{name}[{i}]", part, False)
    elif value is not None and not isinstance(value, Tensor):
        array = isinstance(value, numpy.ndarray)
        kind, give = ("numpy array", "torch.from_numpy(array)") if array else (type(value).__name__, "a torch.Tensor")
        raise InputError(f"{function}: {name} is a {kind}; give {give}")
