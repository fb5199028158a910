"""Optional arguments: what a call may leave out, give more of, or switch.

An optional argument may be left out, a variable number of them may be another number, and a switch may be set.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from reptool.ir.trace import Event, Input
from reptool.ir.walk import nodes_in
from reptool.pysource.functions import behind, codes_in

EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
SETTINGS = {"None", "NoneType", "Optional", "Union", "typing.Optional", "typing.Union"}


def given(function: Callable[..., Any], calls: Iterable[Event]) -> dict[str, Any]:
    """Optional parameters that held values in every call -> what to run the method with to show them held again.

    Args:
        function: the method.
        calls: the calls that were seen.

    Returns:
        An `Input` for each, a tuple of them for ``*args``.
    """
    signature = inspect.signature(function)
    out: dict[str, Any] = {}
    try:
        bounds = [signature.bind(e.module, *e.args, **e.kwargs).arguments for e in calls]
    except TypeError:
        return {}
    for name, parameter in list(signature.parameters.items())[1:]:
        held = [b.get(name) for b in bounds]
        if parameter.kind is parameter.VAR_POSITIONAL:
            counts = {len(h or ()) for h in held}
            if len(counts) == 1:
                out[name] = tuple(Input(f"{name}_{i}") for i in range(counts.pop()))
        elif parameter.default is not parameter.empty and all(any(True for _ in nodes_in(h)) for h in held):
            out[name] = Input(name)
    return out


def without(name: str, value: Any, function: Callable[..., Any]) -> Iterator[Any]:
    """What the parameter `name` may hold instead: its default, or more and fewer arguments."""
    if isinstance(value, tuple):
        for count in (len(value) + 1, len(value) - 1):
            if count > 0:
                yield tuple(Input(f"{name}_{i}") for i in range(count))
    else:
        yield inspect.signature(function).parameters[name].default


def names_in(function: Any) -> set[str]:
    """Every name that a function and the functions inside it look up."""
    return {n for code in (c for f in behind(function) for c in codes_in(f.__code__)) for n in code.co_names}


def is_switch(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is annotated to be True, False or None."""
    return bool(kinds_of(parameter)) and kinds_of(parameter) <= SETTINGS | {"bool"}


def offered(event: Event, parameter: inspect.Parameter, value: Any, given: bool, prefix: str) -> bool:
    """Whether an argument is a mode that the model offers, so that nothing may be made for one value of it.

    A switch of the model's own forward is one unless the example inputs set it, and so is one that a caller inside the
    model sets: it hands on what it was called with. A switch that nobody in the model sets is none.

    Args:
        event: a call.
        parameter: of its method.
        value: the constant it had.
        given: whether the caller set it.
        prefix: where in the model the traced module is; "" where it is the model itself.
    """
    called = given if event.parent is not None or prefix else not given
    return called and (type(value) is bool or is_switch(parameter))


def kinds_of(parameter: inspect.Parameter) -> set[str]:
    """The type names that an annotation consists of; none without one."""
    kind = parameter.annotation
    if kind is parameter.empty:
        return set()
    return set(re.findall(r"[\w.]+", kind.__name__ if isinstance(kind, type) else str(kind)))
