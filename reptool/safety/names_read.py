"""Attribute names that the user's functions read, and which functions take data."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from reptool.capture.optional_arguments import SETTINGS, kinds_of
from reptool.pysource.functions import behind
from reptool.pysource.handing import WALKS, asked_for, hands_on
from reptool.runtime.subclass import CONVERSIONS

_NOT_DATA = (
    "init", "load", "save", "reset", "set_", "make", "build", "freeze", "unfreeze", "train", "export", "log_", "prune",
    "fuse", "merge", "convert", "repar", "gradient_checkpointing", "activation_checkpointing",
)  # fmt: skip
_SCALARS = {"bool", "int", "float", "str"}


@dataclass
class Loads:
    """Attribute names a function reads.

    Args:
        own: read directly from its first parameter.
        other: read from anything else.
        values: read for more than calling them at once.
        called: read and called at once.
        nested: how many loops and subscripts the function has.
        calls: every global and attribute name.
        walks: the ways in which it walks over modules and runs or hands on what it finds.
        functions: whose text it is.
    """

    own: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    nested: int = 0
    calls: set[str] = field(default_factory=set)
    walks: set[str] = field(default_factory=set)
    functions: list[Callable[..., Any]] = field(default_factory=list)

    def join(self, other: Loads) -> None:
        """Add what another function reads."""
        self.own |= other.own
        self.other |= other.other
        self.values |= other.values
        self.called |= other.called
        self.calls |= other.calls
        self.walks |= other.walks
        self.nested += other.nested
        self.functions += other.functions


def loads(function: Callable[..., Any]) -> Loads:
    """The attribute names that a function reads, what it wraps and its inner functions included."""
    whole = Loads()
    for part in behind(function):
        whole.join(_loads_of(part))
    return whole


@functools.lru_cache(maxsize=4096)
def _loads_of(function: FunctionType) -> Loads:
    out = Loads(functions=[function])
    code = function.__code__
    stack = [code]
    own = code.co_varnames[0] if code.co_argcount else ""
    while stack:
        code = stack.pop()
        stack += [c for c in code.co_consts if inspect.iscode(c)]
        previous: dis.Instruction | None = None
        for i in dis.get_instructions(code):
            if i.opname in ("GET_ITER", "BINARY_SUBSCR", "BINARY_SLICE") or (
                i.opname == "BINARY_OP" and i.argrepr == "[]"
            ):
                out.nested += 1
            if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                out.calls.add(str(i.argval))
            if i.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                name = str(i.argval)
                out.calls.add(name)
                direct = previous is not None and previous.opname.startswith("LOAD_") and _last(previous) == own
                (out.own if direct else out.other).add(name)
                (out.called if _calls(i) else out.values).add(name)
            if i.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG"):
                previous = i
    for names in (out.own, out.other, out.values, out.called):
        names |= asked_for(function)
    if hands_on(function):
        out.walks = out.calls & (WALKS | {"getattr"})
    return out


def _last(instruction: dis.Instruction) -> Any:
    """The name on top of the stack behind a load (some load two)."""
    value = instruction.argval
    return value[-1] if isinstance(value, tuple) and value else value


def _calls(instruction: dis.Instruction) -> bool:
    """Whether an attribute is read to be called at once (Python 3.12 and newer say so in the lowest bit)."""
    if instruction.opname == "LOAD_METHOD":
        return True
    return sys.version_info >= (3, 12) and instruction.opname == "LOAD_ATTR" and bool((instruction.arg or 0) & 1)


def functions_of(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The user's plain functions of a class that may take data: name and function."""
    seen: set[str] = set()
    for klass in cls.__mro__:
        if klass is nn.Module or (klass.__module__ or "").startswith("torch."):
            continue
        for name, value in vars(klass).items():
            if name in seen:
                continue
            seen.add(name)
            if inspect.isfunction(value) and name != "forward" and _takes_data(name, value):
                yield name, value


def _takes_data(name: str, function: Callable[..., Any]) -> bool:
    return _may_be_called(name) and not _takes_settings(function)


def _may_be_called(name: str) -> bool:
    if name.startswith("__") or name in CONVERSIONS or hasattr(nn.Module, name):
        return False
    return not name.lstrip("_").startswith(_NOT_DATA)


def without_data(cls: type) -> Iterator[str]:
    """Names of the user's methods that take nothing but the module itself and settings."""
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        if inspect.isfunction(function) and _may_be_called(name) and _takes_settings(function):
            yield name


def properties_of(cls: type) -> Iterator[str]:
    """Names of the user's properties."""
    for name in dir(cls):
        if isinstance(inspect.getattr_static(cls, name), property) and not hasattr(nn.Module, name):
            yield name


def _takes_settings(function: Callable[..., Any]) -> bool:
    """Whether a method takes nothing beside the module but numbers, flags and names."""
    return all(_is_setting(p) for p in list(inspect.signature(function).parameters.values())[1:])


def _is_setting(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is annotated to be a number, a flag or a name, which no layer is run on."""
    kinds = kinds_of(parameter)
    return bool(kinds & _SCALARS) and kinds <= SETTINGS | _SCALARS | {"set", "list", "tuple", "dict", "frozenset"}
