"""Snapshots: what a setting was while the model was traced, in a form that a later value is compared with.

A guard compares by value: plain values by ``==`` and type, containers item by item, configuration objects attribute by
attribute, functions by identity, tensors by their numbers. Modules and parameters inside of them are compared by kind
alone: what they compute is guarded where it is computed.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import sys
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx._symbolic_trace import _create_wrapped_func

MAX_DEPTH = 6
MAX_ITEMS = 2000
MAX_NUMBERS = 2**20


class Absent(enum.Enum):
    """What is read of an attribute that is not there."""

    ABSENT = "no such attribute"

    def __repr__(self) -> str:
        return "<absent>"


ABSENT = Absent.ABSENT
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, np.generic, np.dtype, torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Size, range, slice, type(Ellipsis), type,
)  # fmt: skip
PLAIN = (*_ATOMS, Absent)
_IDENTICAL = (BuiltinFunctionType, ModuleType, OpOverload, OpOverloadPacket)
_FX_WRAPPER = _create_wrapped_func(len).__code__
_SEQUENCES = (list, tuple, deque)
_SETS = (set, frozenset)


class IncomparableError(Exception):
    """A value that no later value can be compared with."""


@dataclass(frozen=True)
class Kind:
    """A module or tensor: only its kind is compared."""

    tensor: bool

    def holds(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        return isinstance(value, Tensor if self.tensor else nn.Module)


@dataclass(frozen=True)
class Items:
    """A sequence or set of values, of one type."""

    type: type
    items: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value has the same items."""
        if type(value) is not self.type:
            return False
        items: Any = value
        if len(items) != len(self.items):
            return False
        if issubclass(self.type, _SETS):
            return all(v in items for v in self.items)
        return all(same(v, s) for v, s in zip(items, self.items, strict=True))


@dataclass(frozen=True)
class Entries:
    """A mapping, of one type."""

    type: type
    entries: tuple[tuple[Any, Any], ...]

    def holds(self, value: Any) -> bool:
        """Whether a value has the same entries."""
        if type(value) is not self.type or not isinstance(value, Mapping) or len(value) != len(self.entries):
            return False
        return all(k in value and same(value[k], v) for k, v in self.entries)


@dataclass(frozen=True)
class Attributes:
    """An object that holds others, a configuration for example."""

    type: type
    attributes: tuple[tuple[str, Any], ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is such an object with the same attributes."""
        return type(value) is self.type and all(same(held(value, n, ABSENT), v) for n, v in self.attributes)


@dataclass(frozen=True)
class Function:
    """A function of Python with what it holds: defaults, and the variables that it closes over.

    Args:
        code: the function itself, a digest of its code if it has no address under which a pickle finds it again.
        held: snapshots of its defaults, and of the cells of its closure.
    """

    code: Any
    held: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is such a function."""
        value = _behind_fx(value)
        if not isinstance(value, FunctionType):
            return False
        if self.code is not value and self.code != _digest(value.__code__):
            return False
        held = held_by(value)
        return len(held) == len(self.held) and all(map(same, held, self.held))


def _behind_fx(value: Any) -> Any:
    """The function that `torch.fx` put a wrapper around, as it does with those that are named to it while it traces."""
    while isinstance(value, FunctionType) and value.__code__ is _FX_WRAPPER:
        value = inspect.getclosurevars(value).nonlocals["orig_fn"]
    return value


def held_by(function: FunctionType) -> list[Any]:
    """The defaults of a function, and what is in its closure."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = [_content(cell) for name, cell in cells if name != "__class__"]
    return [function.__defaults__, function.__kwdefaults__, *found]


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return ABSENT


def _digest(code: CodeType) -> bytes:
    parts = [_digest(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, code.co_varnames, parts)).encode()).digest()


def _is_found(function: FunctionType) -> bool:
    """Whether a function is what its module holds under its name, so that a pickle may name it."""
    module: Any = sys.modules.get(function.__module__)
    try:
        return bool(functools.reduce(getattr, function.__qualname__.split("."), module) is function)
    except AttributeError:
        return False


@dataclass(frozen=True, eq=False)
class Array:
    """An array of numbers."""

    value: np.ndarray[Any, Any]

    def holds(self, value: Any) -> bool:
        """Whether a value has the same numbers."""
        return isinstance(value, np.ndarray) and value.dtype == self.value.dtype and np.array_equal(value, self.value)


class Numbers:
    """A tensor that is no parameter. One that was compared and not written since is not compared again.

    Args:
        value: the tensor as it was.
    """

    def __init__(self, value: Tensor) -> None:
        self.value = value.detach().clone()
        self._known: tuple[weakref.ref[Tensor], int] | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value has the same numbers."""
        if not isinstance(value, Tensor) or _is_followed(value):
            return isinstance(value, Tensor)
        known = self._known
        if known is not None and known[0]() is value and known[1] == value._version:
            return True
        if value.dtype != self.value.dtype or value.shape != self.value.shape:
            return False
        seen = self.value.to(value.device)
        equal = bool(((value == seen) | ((value != value) & (seen != seen))).all())
        self._known = (weakref.ref(value), value._version) if equal and not value.is_inference() else None
        return equal

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and self.holds(other.value)

    def __hash__(self) -> int:
        return hash((self.value.shape, self.value.dtype))

    def __getstate__(self) -> dict[str, Any]:
        return {"value": self.value, "_known": None}


def _is_followed(value: Tensor) -> bool:
    """Whether code is followed rather than run, so that nothing can be decided by numbers."""
    tracing = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return tracing or isinstance(value, FakeTensor)


_SNAPSHOTS = (Kind, Items, Entries, Attributes, Function, Array, Numbers)


def snapshot(value: Any) -> Any:
    """What a later value is compared with.

    Raises:
        IncomparableError: nothing can be said about it.

    >>> same([1, {"a": False}], snapshot([1, {"a": False}])), same([1, {"a": True}], snapshot([1, {"a": False}]))
    (True, False)
    """
    return _Taking().of(value, 0)


def taken(value: Any) -> Any:
    """A snapshot, or the `IncomparableError` that says why there is none."""
    try:
        return snapshot(value)
    except IncomparableError as error:
        return error


class _Taking:
    def __init__(self) -> None:
        self.count = 0

    def of(self, value: Any, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_ITEMS or depth > MAX_DEPTH:
            raise IncomparableError("it is too large")
        if isinstance(value, FunctionType):
            code = value if _is_found(value) else _digest(value.__code__)
            return Function(code, tuple(self.of(v, depth + 1) for v in held_by(value)))
        if isinstance(value, (*_ATOMS, *_IDENTICAL)) or value is ABSENT:
            return value
        if isinstance(value, (nn.Module, nn.Parameter)):
            return Kind(isinstance(value, Tensor))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, MethodType):
            return Attributes(MethodType, (("__func__", self.of(value.__func__, depth + 1)),))
        if isinstance(value, functools.partial):
            parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
            return Attributes(type(value), tuple((n, self.of(v, depth + 1)) for n, v in parts.items()))
        if isinstance(value, np.ndarray):
            return Array(value.copy())
        if isinstance(value, _SETS):
            return Items(type(value), tuple(value))
        if isinstance(value, _SEQUENCES):
            return Items(type(value), tuple(self.of(v, depth + 1) for v in value))
        if isinstance(value, Mapping):
            return Entries(type(value), tuple((k, self.of(value[k], depth + 1)) for k in value))
        return self._object(value, depth)

    def _tensor(self, value: Tensor) -> Any:
        if value.numel() > MAX_NUMBERS or value.layout is not torch.strided or value.is_meta:
            raise IncomparableError("it is a tensor that is too large to be compared")
        return Numbers(value)

    def _object(self, value: Any, depth: int) -> Any:
        names = names_of(value)
        found = [(name, self.of(held(value, name, ABSENT), depth + 1)) for name in names]
        of_class = [(n, v) for n, v in _of_class(type(value)).items() if n not in names]
        found += [(n, self.of(v, depth + 1) if isinstance(v, _DATA) else ABSENT) for n, v in of_class]
        return Attributes(type(value), tuple(found))


def names_of(value: Any) -> list[str]:
    """The attributes that an object itself holds."""
    slots = [s for c in type(value).__mro__ for s in _words(vars(c).get("__slots__", ()))]
    own = getattr(value, "__dict__", {})
    return [*own, *(s for s in slots if s not in ("__dict__", "__weakref__") and hasattr(value, s))]


_DATA = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))


def _of_class(cls: type) -> dict[str, Any]:
    """What the classes of an object hold in public: data, and methods, in front of which it may hold others itself."""
    found: dict[str, Any] = {}
    for base in cls.__mro__ if cls.__module__.partition(".")[0] not in _FOREIGN else ():
        for name, value in vars(base).items() if base is not object else ():
            if not name.startswith("_") and isinstance(value, (*_DATA, FunctionType, classmethod, staticmethod)):
                found.setdefault(name, value)
    return found


_FOREIGN = frozenset([*sys.stdlib_module_names, "torch", "numpy"])


def _words(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def held(value: Any, name: str, default: Any) -> Any:
    """An attribute that an object itself holds, whatever its class makes of reading it."""
    own = getattr(value, "__dict__", None)
    if own is not None and name in own:
        return own[name]
    if own is not None and not isinstance(value, (MethodType, functools.partial)) and not _is_slot(value, name):
        found = next((vars(c)[name] for c in type(value).__mro__ if name in vars(c)), default)
        return found if isinstance(found, _DATA) else default
    return getattr(value, name, default)


def _is_slot(value: Any, name: str) -> bool:
    return inspect.ismemberdescriptor(inspect.getattr_static(type(value), name, None))


def same(value: Any, seen: Any) -> bool:
    """Whether a value is what it was when the snapshot `seen` was taken."""
    if isinstance(seen, _SNAPSHOTS):
        return seen.holds(value)
    if value is seen or _behind_fx(value) is seen:
        return True
    if type(value) is not type(seen) or isinstance(seen, _IDENTICAL):
        return False
    return bool(value == seen) or (value != value and seen != seen)  # NaN is what it was
