"""Methods of a class: those of the user's that may be called, those that take data, and the names they look up."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator

from torch import nn

from reptool.capture.optional_arguments import SETTINGS, kinds_of
from reptool.pysource.functions import codes_in, run_by
from reptool.runtime.subclass import CONVERSIONS

_SCALARS = {"bool", "int", "float", "str"}


def methods_of(cls: type) -> Iterator[str]:
    """Names of the user's methods of a class: not what torch calls under its own names, nor what becomes a no-op."""
    for name in dir(cls):
        user = _home_of(cls, name)
        if user is None or not inspect.isfunction(vars(user)[name]):
            continue
        if name == "forward" or not (name.startswith("__") or name in CONVERSIONS or hasattr(nn.Module, name)):
            yield name


def _home_of(cls: type, name: str) -> type | None:
    """The class of the user's that defines a name; None where torch does."""
    found = next((c for c in cls.__mro__ if name in vars(c)), None)
    return None if found is None or f"{found.__module__}.".startswith("torch.") else found


def properties_of(cls: type) -> Iterator[str]:
    """Names of the user's properties."""
    for name in dir(cls):
        if isinstance(inspect.getattr_static(cls, name), property) and not hasattr(nn.Module, name):
            yield name


def takes_data(cls: type, name: str) -> bool:
    """Whether a method takes more beside the module than numbers, flags and names, on which no layer is run."""
    function = inspect.getattr_static(cls, name)
    return inspect.isfunction(function) and not all(
        _is_setting(p) for p in list(inspect.signature(function).parameters.values())[1:]
    )


def _is_setting(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is annotated to be a number, a flag or a name, which no layer is run on."""
    kinds = kinds_of(parameter)
    return bool(kinds & _SCALARS) and kinds <= SETTINGS | _SCALARS | {"set", "list", "tuple", "dict", "frozenset"}


def names_of(cls: type, name: str) -> frozenset[str]:
    """Every name that a method and the methods of its class that it names look up, or spell out."""
    return _names_of(cls, name)


@functools.lru_cache(maxsize=4096)
def _names_of(cls: type, name: str) -> frozenset[str]:
    found: set[str] = set()
    queue, seen = [name], {name}
    while queue:
        member = inspect.getattr_static(cls, queue.pop(), None)
        for function in run_by(member):
            codes = list(codes_in(function.__code__))
            here = {n for c in codes for n in (*c.co_names, *c.co_consts) if isinstance(n, str)}
            own = {
                n for n in here if not hasattr(nn.Module, n) and inspect.getattr_static(cls, n, None) is not None
            } - seen
            found |= here
            queue += own
            seen |= own
    return frozenset(found)
