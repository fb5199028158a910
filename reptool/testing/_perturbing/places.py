"""Where the values stand that code may ask for: attributes, configurations, containers, classes, globals, closures."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import inspect
import threading
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from reptool.testing._perturbing.change import Place, Put, module_text, parts_of
from reptool.testing._perturbing.code import Code, is_own, namespace_text, own_classes, plain_functions, reachable
from reptool.testing._perturbing.values import is_atom

MAX_DEPTH, MAX_ITEMS = 6, 64
_TORCH_ATTRIBUTES = frozenset(vars(nn.Module())) | {"_is_hf_initialized"}
_NAMESPACES = (types.SimpleNamespace, threading.local)


def places(model: nn.Module, code: Code) -> Iterator[Place]:
    """Every place of a model and of its code."""
    for path, module in parts_of(model):
        here = module_text(path)
        for name, value in list(vars(module).items()):
            private = name.startswith("_" if type(module).__module__.startswith("torch.") else "__")
            if name not in _TORCH_ATTRIBUTES and not private and name.isidentifier():
                read = f"{here}.{name}"
                yield from within("attribute", read, value, assigns(read))
    yield from _of_classes(model)
    yield from _of_globals(code)
    yield from _of_functions(code)
    yield from _of_methods(model)


def assigns(target: str) -> Put:
    """The writer of something that can be assigned to."""
    return lambda text: f"{target} = {text}"


def _of_classes(model: nn.Module) -> Iterator[Place]:
    seen: set[int] = set()
    for path, module in parts_of(model):
        here = f"type(model.get_submodule({path!r}))" if path else "type(model)"
        for kind in own_classes(type(module)):
            if id(kind) in seen:
                continue
            seen.add(id(kind))
            index = type(module).__mro__.index(kind)
            read = f"{here}.__mro__[{index}]" if index else here
            for name, value in list(vars(kind).items()):
                if not name.startswith("__") and not list(plain_functions(value)):
                    yield from within("class", f"{read}.{name}", value, assigns(f"{read}.{name}"))


def _of_globals(code: Code) -> Iterator[Place]:
    for names, name in code.globals.values():
        if reachable(names) and not name.startswith("__"):
            read = f"{namespace_text(names)}[{name!r}]"
            yield from within("global", read, names[name], assigns(read))


def _of_functions(code: Code) -> Iterator[Place]:
    for read, function in code.functions:
        for index, cell in enumerate(function.__closure__ or ()):
            try:
                held = cell.cell_contents
            except ValueError:
                continue
            inner = f"{read}.__closure__[{index}].cell_contents"
            yield from within("closure", inner, held, assigns(inner))
        if "__mro__" not in read and not read.startswith("vars(type("):  # those of methods are reached on either side
            yield from _defaults(read, function)


def _of_methods(model: nn.Module) -> Iterator[Place]:
    for path, module in parts_of(model):
        for name in sorted({name for kind in own_classes(type(module)) for name in vars(kind)}):
            method = inspect.getattr_static(type(module), name)
            if isinstance(method, types.FunctionType) and (name == "__call__" or not name.startswith("__")):
                yield from _defaults(f"{module_text(path)}.{name}.__func__", method)


def _defaults(read: str, function: types.FunctionType) -> Iterator[Place]:
    for name, held in (("__defaults__", function.__defaults__), ("__kwdefaults__", function.__kwdefaults__)):
        if held:
            yield from within("default", f"{read}.{name}", held, assigns(f"{read}.{name}"))


def within(
    kind: str, read: str, value: Any, put: Put, depth: int = 0, owner: tuple[str, Put] | None = None
) -> Iterator[Place]:  # long: a case for each sort of object
    """The place of a value, and those of everything in it."""
    if depth > MAX_DEPTH or isinstance(value, (nn.Parameter, nn.Module, type, types.ModuleType)):
        return
    if isinstance(value, Tensor):
        if kind != "argument":
            yield Place(kind, read, value, put, owner)
        return
    if is_atom(value) or (depth == 0 and kind == "attribute" and isinstance(value, types.FunctionType)):
        yield Place(kind, read, value, put, owner)
        return
    if isinstance(value, contextvars.ContextVar):
        held = value.get(None)
        yield Place(kind, f"{read}.get(None)", held, lambda text: f"{read}.set({text})")
        return
    owner = owner or (read, put)
    inside = "container" if kind in ("attribute", "config") else kind
    as_attribute = "config" if kind in ("attribute", "container") else kind
    if isinstance(value, (dict, list, tuple, set, frozenset, deque)):
        yield Place(inside, read, value, put, owner if depth else None)
    if isinstance(value, dict):
        for key in list(value)[:MAX_ITEMS]:
            if isinstance(key, (str, int, bool, float, type(None))):
                item = f"{read}[{key!r}]"
                yield from within(inside, item, value[key], assigns(item), depth + 1, owner)
    elif isinstance(value, (list, deque)):
        for index, element in enumerate(list(value)[:MAX_ITEMS]):
            item = f"{read}[{index}]"
            yield from within(inside, item, element, assigns(item), depth + 1, owner)
    elif isinstance(value, tuple):
        for index, element in enumerate(value[:MAX_ITEMS]):
            item = f"{read}[{index}]"
            yield from within(inside, item, element, _in_tuple(read, value, index, put), depth + 1, owner)
    elif isinstance(value, functools.partial):
        yield from within(inside, f"{read}.keywords", value.keywords, put, depth + 1, owner)
    elif _is_object(value):
        for name, held in list(getattr(value, "__dict__", {}).items()):
            if name.isidentifier():
                target = f"{read}.{name}"
                writer = _in_frozen(read, name, put) if _is_frozen(value) else assigns(target)
                yield from within(as_attribute, target, held, writer, depth + 1, owner)
        for name in getattr(type(value), "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                target = f"{read}.{name}"
                yield from within(as_attribute, target, getattr(value, name), assigns(target), depth + 1, owner)


def _in_tuple(read: str, value: tuple[Any, ...], index: int, put: Put) -> Put:
    fields = getattr(value, "_fields", None)
    if fields is not None:
        return lambda text: put(f"{read}._replace({fields[index]}={text})")
    return lambda text: put(f"(*{read}[:{index}], {text}, *{read}[{index + 1}:])")


def _in_frozen(read: str, name: str, put: Put) -> Put:
    return lambda text: put(f"dataclasses.replace({read}, {name}={text})")


def _is_frozen(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and bool(getattr(type(value), "__dataclass_params__").frozen)  # noqa: B009


def _is_object(value: Any) -> bool:
    """Whether it is an object of the user's that holds values, such as a configuration."""
    kind = type(value)
    if isinstance(value, _NAMESPACES):
        return True
    return is_own(kind.__module__) and (hasattr(value, "__dict__") or hasattr(kind, "__slots__"))
