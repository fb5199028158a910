"""The calls of modules' methods in a stack, and which method of a class some code is."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

from reptool.runtime.gates.chain import Link

_AS_IT_WAS = "_reptool_original_"
MAX_KNOWN = 10_000
_NAMES: weakref.WeakKeyDictionary[type, dict[CodeType, str]] = weakref.WeakKeyDictionary()
_KINDS: dict[tuple[int, int], tuple[type, Link, bool]] = {}
_METHODS: dict[tuple[int, int], tuple[CodeType, type, str | None]] = {}
MACHINERY = {
    id(f.__code__) for f in (nn.Module._call_impl, nn.Module._wrapped_call_impl, nn.Module._slow_forward)
}  # by address: the hash of code goes through all of it


class Calls:
    """The calls of modules' methods in a stack, innermost first; read as far as they are asked for."""

    __slots__ = ("found", "frame", "frames")

    def __init__(self, frame: FrameType | None) -> None:
        self.frame = frame
        self.found: list[tuple[nn.Module, str]] = []
        self.frames: list[FrameType] = []

    def at(self, index: int) -> tuple[nn.Module, str] | None:
        """One call; None beyond the last."""
        found, frame = self.found, self.frame
        while len(found) <= index:
            if frame is None:
                return None
            code = frame.f_code
            if id(code) not in MACHINERY and code.co_argcount:
                module = first_argument(frame)
                if isinstance(module, nn.Module):
                    name = method_of(module, code)
                    if name is not None:
                        found.append((module, name))
                        self.frames.append(frame)
            self.frame = frame = frame.f_back
        return found[index]

    def is_of_class(self, index: int) -> bool:
        """Whether the code of a call that was found is that of the module's class, and was not put on the module."""
        return self.frames[index].f_code in method_names(type(self.found[index][0]))

    def outermost(self) -> nn.Module | None:
        """The module whose call is around all others."""
        count = 0
        while self.at(count) is not None:
            count += 1
        return self.found[-1][0] if self.found else None


def first_argument(frame: FrameType) -> Any:
    """What a frame's code was given first: the module, where it is a method of one."""
    code, held = frame.f_code, frame.f_locals
    first = held.get(code.co_varnames[0])
    if type(held) is dict and sys.getrefcount(held) <= 3 and code.co_flags & 2:
        held.clear()  # a snapshot, which would keep alive what the code does not hold any more
    return first


def method_of(module: nn.Module, code: CodeType) -> str | None:
    """The method of a module that runs some code."""
    cls = type(module)
    known = _METHODS.get((id(code), id(cls)))
    if known is None:
        if len(_METHODS) > MAX_KNOWN:
            _METHODS.clear()
        known = _METHODS[id(code), id(cls)] = code, cls, method_names(cls).get(code)  # both stay at their address
    if known[2] is None and "forward" in module.__dict__ and _is_of(module.__dict__["forward"], code):
        return "forward"
    return known[2]


def _is_of(bound: Any, code: CodeType) -> bool:
    return code in set(_codes(getattr(bound, "__func__", bound)))


def kind_of(cls: type) -> str:
    """The full name of a class: the same for classes that were derived when deploying."""
    return f"{cls.__module__}.{cls.__qualname__}"


def is_kind(cls: type, link: Link) -> bool:
    """Whether modules of a class run the method of a link."""
    known = _KINDS.get((id(cls), id(link)))
    if known is None:
        if len(_KINDS) > MAX_KNOWN:
            _KINDS.clear()
        base = next((c for c in cls.__mro__ if kind_of(c) == link.kind), None)
        same = base is not None and (link.own or getattr(cls, link.method) is getattr(base, link.method))
        known = _KINDS[id(cls), id(link)] = cls, link, same
    return known[2]


def method_names(cls: type) -> dict[CodeType, str]:
    """Code -> the method of a class that it belongs to; not that of methods which a subclass overrides.

    The code that a method had before it was written anew is none: only within the new one it runs a region as it was.
    """
    found = _NAMES.get(cls)
    if found is None:
        names: dict[CodeType, set[str]] = {}
        seen: set[str] = set()
        for base in cls.__mro__:
            if base is nn.Module:
                break
            for name, value in vars(base).items():
                if name in seen:
                    continue
                seen.add(name)
                for code in _codes(value):
                    names.setdefault(code, set()).add(name)
        only = ((code, next(iter(held))) for code, held in names.items() if len(held) == 1)
        found = _NAMES[cls] = {code: name for code, name in only if not name.startswith(_AS_IT_WAS)}
    return found


def _codes(value: Any, depth: int = 0) -> Iterator[CodeType]:
    """The code of a member of a class, and of what it wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    if isinstance(value, FunctionType) and depth < 6:
        yield value.__code__
        inner: list[Callable[..., Any]] = [getattr(value, "__wrapped__", None)]  # type: ignore[list-item]
        with contextlib.suppress(ValueError):  # a cell that is still empty
            inner += [cell.cell_contents for cell in value.__closure__ or ()]
        for function in inner:
            yield from _codes(function, depth + 1)
