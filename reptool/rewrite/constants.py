"""Constants of generated code: a value is printed where its text is unambiguous, and kept as data elsewhere.

Numbers, words, None and plain containers of them are text. Everything else (numpy scalars and arrays, enumerations,
subclasses of numbers and words, classes) is an entry of a table beside the source, under a name that nothing else in it
has; functions of packages are called by their whole name. What cannot be stored is refused.
"""

from __future__ import annotations

import enum
import functools
import math
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload, OpOverloadPacket

from reptool.refusal import Code
from reptool.runtime.containers import Template
from reptool.runtime.expect import Like
from reptool.runtime.method import find


class CannotCutError(Exception):
    """A method cannot be printed from its trace; the message says why.

    Args:
        message: why.
        code: the kind of refusal it becomes.
    """

    def __init__(self, message: str, code: Code = Code.METHOD) -> None:
        super().__init__(message)
        self.code = code


_IMMUTABLE = (
    int, float, complex, str, bytes, enum.Enum, np.generic, np.dtype, torch.device, torch.Size, torch.finfo,
    torch.iinfo, type, Template, Like,
)  # fmt: skip
_NAMED = (torch.dtype, torch.layout, torch.memory_format)
_HOMES = ("torch", "torch._C._nn", "torch.nn.functional", "operator", "math", "builtins", "torch.special", "torch._C")


class Constants:
    """The table of one method.

    Args:
        taken: names that the source uses for something else.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._held: dict[int, tuple[str, Any]] = {}
        self._imported: dict[str, str] = {}

    @property
    def values(self) -> tuple[tuple[str, Any], ...]:
        """Names and values, in the order in which they were met."""
        return tuple(self._held.values())

    @property
    def names(self) -> tuple[tuple[str, str, str], ...]:
        """What is imported: name in the source, module, nothing for the module itself."""
        return tuple((name, module, "") for module, name in self._imported.items())

    def text(self, value: Any, what: str = "a constant") -> str:
        """The source text of a constant.

        Args:
            value: the constant.
            what: what it is, for the error.

        Raises:
            CannotCutError: it cannot be kept as data.
        """
        if is_text(value):
            return "..." if value is Ellipsis else repr(value)
        if type(value) in (list, tuple, dict, set, slice):
            return self._container(value, what)
        if isinstance(value, _NAMED):
            return f"{self._package('torch')}.{str(value).removeprefix('torch.')}"
        if isinstance(value, ModuleType):
            return self._package(value.__name__)
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{self.keep(value.copy())}.copy()"  # whoever is given it may write into it
        if isinstance(value, _IMMUTABLE):
            return self.keep(value)
        if callable(value) and address(value) is not None:
            return self.function(value)
        raise CannotCutError(f"{what} is a {type(value).__name__}, which cannot be stored as a constant")

    def _container(self, value: Any, what: str) -> str:
        if type(value) is slice:
            return f"slice({', '.join(self.text(v, what) for v in (value.start, value.stop, value.step))})"
        if type(value) is dict:
            return "{" + ", ".join(f"{self.text(k, what)}: {self.text(v, what)}" for k, v in value.items()) + "}"
        inner = ", ".join(self.text(v, what) for v in value)
        if type(value) is set:
            return f"{{{inner}}}" if value else "set()"
        return f"[{inner}]" if type(value) is list else f"({inner}{',' * (len(value) == 1)})"

    def keep(self, value: Any, name: str = "_c") -> str:
        """A name in the source for a value that is kept as it is."""
        if id(value) not in self._held:
            self._held[id(value)] = (self._free(name, len(self._held)), value)
        return self._held[id(value)][0]

    def function(self, function: Any) -> str:
        """The text under which the source calls a function.

        Raises:
            CannotCutError: it has no name under which it is found again.
        """
        home = address(function)
        if home is not None:
            module, name = home
            return name if module == "builtins" and name not in self._taken else f"{self._package(module)}.{name}"
        owner = getattr(function, "__self__", None)
        if isinstance(owner, (type, np.ufunc)):  # a class method (`apply` of an autograd function), `np.add.reduce`
            return f"{self.text(owner)}.{function.__name__}"
        if isinstance(function, np.ufunc):
            return self.keep(function, "_f")
        raise CannotCutError(f"{getattr(function, '__qualname__', function)!r} cannot be imported again")

    def member(self, module: str, name: str) -> str:
        """The text for what a module holds under a name."""
        if _reached(module) is not sys.modules.get(module):  # something else has its name in the package around it
            self._imported.setdefault(module, self._free("_module"))
            return f"{self._imported[module]}.{name}"
        return f"{self._package(module)}.{name}"

    def _package(self, module: str) -> str:
        """The text for a module: its whole name, of which the first part is imported."""
        first, _, rest = module.partition(".")
        if first not in self._imported:
            self._imported[first] = self._free(first)
        return ".".join(p for p in (self._imported[first], rest) if p)

    def _free(self, name: str, number: int | None = None) -> str:
        """A name that is not taken yet."""
        made = name if number is None else f"{name}{number}"
        while made in self._taken:
            number = 0 if number is None else number + 1
            made = f"{name}_{number}"
        self._taken.add(made)
        return made


def _reached(module: str) -> Any:
    """What the whole name of a module means, its first part imported."""
    first, *rest = module.split(".")
    return functools.reduce(lambda held, name: getattr(held, name, None), rest, sys.modules.get(first))


def is_text(value: Any) -> bool:
    """Whether a constant is what its `repr` says in every scope.

    >>> is_text(0.5), is_text(float("inf")), is_text(np.float64(0.5)), is_text(torch.float32)
    (True, False, False, False)
    """
    if type(value) is float:
        return math.isfinite(value)
    return value is None or value is Ellipsis or type(value) in (bool, int, str, bytes)


def address(value: Any) -> tuple[str, str] | None:
    """Module and name under which a function is found again by attributes alone; None where there are none.

    >>> address(torch.nn.functional.relu), address(lambda x: x)
    (('torch.nn.functional', 'relu'), None)
    """
    if isinstance(value, (OpOverload, OpOverloadPacket)):
        return ("torch", f"ops.{value}") if _is_found("torch", f"ops.{value}", value) else None
    names = dict.fromkeys((getattr(value, "__qualname__", None), getattr(value, "__name__", None)))
    for module in (getattr(value, "__module__", None), *_HOMES):
        for name in names:
            if isinstance(module, str) and isinstance(name, str) and _is_found(module, name, value):
                return module, name
    return None


def _is_found(module: str, name: str, value: Any) -> bool:
    """Whether a dotted name means this value, with an import of nothing but its first part."""
    path = f"{module}.{name}"
    if not all(part.isidentifier() for part in path.split(".")):
        return False
    try:
        return find(module, name) is value and find(*path.split(".", 1)) is value
    except (ImportError, AttributeError, ValueError):
        return False
