"""The user's own code of a model: its classes, functions and globals, and the words and numbers that it names."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

_TORCH_NAMES = frozenset(dir(nn.Module()))
MAX_INT = 64
"""Larger numbers of the code are not tried as other values: a loop may run so often."""


def is_own(name: object) -> bool:
    """Whether a module of this name holds code of the user's, or of a library of models."""
    top = str(name).partition(".")[0]
    if top == "reptool":
        return str(name).startswith("reptool.blocks")
    return top not in ("torch", "numpy", "builtins", "None") and top not in (sys.stdlib_module_names - {"__main__"})


def own_classes(kind: type) -> list[type]:
    """The classes of a class's method resolution order that are the user's."""
    return [c for c in kind.__mro__ if is_own(c.__module__)]


def plain_functions(value: Any) -> Iterator[tuple[str, types.FunctionType]]:
    """The functions behind a value of a class body, each with the end of the expression that reads it."""
    if isinstance(value, types.FunctionType):
        yield "", value
    elif isinstance(value, (staticmethod, classmethod)):
        yield from ((f".__func__{end}", f) for end, f in plain_functions(value.__func__))
    elif isinstance(value, property):
        for name in ("fget", "fset"):
            yield from ((f".{name}{end}", f) for end, f in plain_functions(getattr(value, name)))
    elif isinstance(value, (functools.cached_property, functools.partial)):
        yield from ((f".func{end}", f) for end, f in plain_functions(value.func))
    elif isinstance(value, types.MethodType):
        yield from ((f".__func__{end}", f) for end, f in plain_functions(value.__func__))


@dataclass
class Code:
    """What the code of a model names."""

    functions: list[tuple[str, types.FunctionType]] = field(default_factory=list)  # with the expression that reads each
    globals: dict[tuple[int, str], tuple[dict[str, Any], str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    numbers: set[float] = field(default_factory=set)
    classes: list[type] = field(default_factory=list)
    compared: dict[str, list[Any]] = field(default_factory=dict)  # name -> the constants it is compared with
    together: list[set[str]] = field(default_factory=list)  # names that one function reads
    _seen: set[int] = field(default_factory=set)

    def add_class(self, kind: type, read: str) -> None:
        """A class of the user's, with what it is reached by."""
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        self.classes.append(kind)
        for name, value in list(vars(kind).items()):
            for end, function in plain_functions(value):
                self.add_function(function, f"vars({read})[{name!r}]{end}")

    def add_function(self, function: types.FunctionType, read: str) -> None:
        """A function, what it encloses and what it names."""
        if id(function) in self._seen or not is_own(function.__module__):
            return
        self._seen.add(id(function))
        self.functions.append((read, function))
        self._add_text(function.__code__, function.__globals__)
        self.together.append({*function.__code__.co_names, *function.__code__.co_varnames})
        for index, cell in enumerate(function.__closure__ or ()):
            try:
                held = cell.cell_contents
            except ValueError:
                continue
            for end, inner in plain_functions(held):
                self.add_function(inner, f"{read}.__closure__[{index}].cell_contents{end}")
        wrapped = getattr(function, "__wrapped__", None)
        if isinstance(wrapped, types.FunctionType):
            self.add_function(wrapped, f"{read}.__wrapped__")

    def _add_text(self, code: types.CodeType, names: dict[str, Any]) -> None:
        self.names.update(code.co_names)
        for name, const in _comparisons(code):
            self.compared.setdefault(name, []).extend([const, *_near(const)])
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._add_text(const, names)
            else:
                self._add_constant(const)
        for name in code.co_names:
            if name in names:
                self._add_global(names, name)

    def _add_constant(self, const: object) -> None:
        if isinstance(const, str) and len(const) < 40 and "\n" not in const:
            self.words.add(const)
        elif isinstance(const, (int, float)) and not isinstance(const, bool) and abs(const) <= MAX_INT:
            self.numbers.add(const)
        elif isinstance(const, (tuple, frozenset)):
            for item in const:
                self._add_constant(item)

    def _add_global(self, names: dict[str, Any], name: str) -> None:
        value = names[name]
        if str(names.get("__name__")).startswith("reptool."):
            return
        if isinstance(value, types.ModuleType):
            if is_own(value.__name__):
                for other in self.names & set(vars(value)):
                    self._add_global(vars(value), other)
            return
        if (id(names), name) in self.globals:
            return
        self.globals[id(names), name] = names, name
        for end, function in plain_functions(value):
            self.add_function(function, f"{namespace_text(names)}[{name!r}]{end}")
        if isinstance(value, type) and is_own(value.__module__):
            self.add_class(value, f"{namespace_text(names)}[{name!r}]")


def _comparisons(code: types.CodeType) -> Iterator[tuple[str, Any]]:
    """Names of attributes, variables and arguments with the constant that each is compared with."""
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "PUSH_NULL")]
    for read, const, compare in zip(steps, steps[1:], steps[2:], strict=False):
        loads = read.opname.startswith("LOAD_") and isinstance(read.argval, str)
        if loads and const.opname in ("LOAD_CONST", "LOAD_SMALL_INT") and compare.opname in _COMPARE:
            values = const.argval if isinstance(const.argval, (tuple, frozenset)) else (const.argval,)
            yield from ((read.argval, v) for v in values if isinstance(v, (bool, int, float, str, type(None))))


_COMPARE = ("COMPARE_OP", "CONTAINS_OP", "IS_OP")


def _near(const: Any) -> list[Any]:
    return [const - 1, const + 1] if isinstance(const, (int, float)) and not isinstance(const, bool) else []


def namespace_text(names: dict[str, Any]) -> str:
    """The expression for the globals of a module."""
    return f"vars(sys.modules[{names.get('__name__')!r}])"


def reachable(names: dict[str, Any]) -> bool:
    """Whether that expression gives these very globals."""
    found = sys.modules.get(str(names.get("__name__")))
    return found is not None and vars(found) is names


def code_of(model: nn.Module) -> Code:
    """All code of a model that is the user's."""
    code = Code()
    for path, module in model.named_modules():
        here = f"model.get_submodule({path!r})" if path else "model"
        for kind in own_classes(type(module)):
            index = type(module).__mro__.index(kind)
            code.add_class(kind, f"type({here}).__mro__[{index}]" if index else f"type({here})")
        for name, value in list(vars(module).items()):
            for end, function in plain_functions(value):
                code.add_function(function, f"{here}.{name}{end}")
    code.names -= _TORCH_NAMES
    return code
