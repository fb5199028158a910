"""Functions that a method runs and that are no calls of their own in a trace.

Class methods, static methods, properties, and functions that attributes hold: what they read decides as much as what
the method itself reads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from reptool.pysource.functions import behind, codes_in
from reptool.pysource.globals_read import functions_of

Code = Callable[..., Any]


def held_functions(module: nn.Module, method: Any) -> list[Any]:
    """A method and the functions that it reaches through its module and the class of that.

    Args:
        module: whose method it is.
        method: as the class of the module holds it, or a member of that class.

    Returns:
        The members of the class and the functions, the method first.
    """
    found: dict[int, Any] = {}
    queue: list[Any] = [method]
    while queue:
        member = queue.pop(0)
        function = code_of(member)
        if function is None or id(member) in found or _is_of_torch(function):
            continue
        found[id(member)] = member
        names = {n for f in functions_of(function) for code in codes_in(f.__code__) for n in code.co_names}
        for name in sorted(names):
            queue += _reached(module, name)
    return list(found.values())


def code_of(member: Any) -> Code | None:
    """The function that a member of a class runs; None where it runs none."""
    if isinstance(member, (classmethod, staticmethod, MethodType)):
        return member.__func__
    if isinstance(member, property):
        return member.fget
    if isinstance(member, functools.cached_property):
        return member.func
    return member if isinstance(member, (FunctionType, functools.partial)) else None


def _reached(module: nn.Module, name: str) -> Iterator[Any]:
    member = inspect.getattr_static(type(module), name, None)
    if isinstance(member, (classmethod, staticmethod, property, functools.cached_property)):
        yield member
    held = module.__dict__.get(name)
    inner = held if isinstance(held, (list, tuple)) else held.values() if isinstance(held, dict) else (held,)
    for value in inner if name not in _BOOKKEEPING else ():
        if isinstance(value, (FunctionType, functools.partial)):
            yield from behind(value)
        elif isinstance(value, MethodType) and not isinstance(value.__self__, nn.Module):
            yield value
        elif not isinstance(value, nn.Module):  # an object that is called
            yield from filter(None, [inspect.getattr_static(type(value), "__call__", None)])


_BOOKKEEPING = frozenset(vars(nn.Module()))


def _is_of_torch(function: Code) -> bool:
    return str(getattr(function, "__module__", "")).partition(".")[0] == "torch"
