"""Other arguments and settings under which a method may run other code than was traced.

An optional argument may be left out, a variable number of them may be another number, and an attribute of the module
(``self.task``, ``self.use_norm``) may be set to something else after deploying.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from reptool.ir.trace import Event, Input
from reptool.ir.walk import nodes_in
from reptool.pysource.functions import behind

MAX_TRIES = 400
MAX_PARTS = 16
MAX_WORDS = 8
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


def own_settings(module: nn.Module, names: Iterable[str], others: Iterable[str] = ()) -> dict[str, Any]:
    """Plain attributes that say how a module works: flags, numbers, words and collections of them.

    Args:
        module: the module.
        names: attributes of it that its code reads.
        others: what the code reads of something else, of a configuration that the module holds for example.

    Returns:
        Attribute (``"mode"``, ``"config.mode"``) -> value.
    """
    out: dict[str, Any] = {}
    for name in sorted(names):
        value = vars(module).get(name, inspect.getattr_static(type(module), name, None))
        if name == "training" or (is_plain(value) and value is not None and not hasattr(nn.Module, name)):
            out[name] = value
        elif name in vars(module) and name not in EVERY_MODULE and is_configuration(value):
            held = {n: v for n, v in vars(value).items() if n in others and v is not None and is_plain(v)}
            out.update({f"{name}.{n}": held[n] for n in sorted(held)})
    return out


def is_configuration(value: Any) -> bool:
    """Whether a value is an object that does nothing but hold others."""
    return hasattr(value, "__dict__") and not (
        isinstance(value, (nn.Module, Tensor, type, enum.Enum)) or callable(value) or inspect.ismodule(value)
    )


@contextmanager
def set_to(module: nn.Module, settings: Mapping[str, Any]) -> Iterator[None]:
    """Attributes of a module (or of what it holds) set to something else for a while."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    for name, value in settings.items():
        *path, last = name.split(".")
        held = vars(functools.reduce(getattr, path, module))
        changed.append((held, last, held.get(last, changed)))
        held[last] = value
    try:
        yield
    finally:
        for held, last, before in reversed(changed):
            held.pop(last, None)
            if before is not changed:
                held[last] = before


def is_plain(value: Any) -> bool:
    """Whether a value is None, a flag, a number, a word, or a short collection of such."""
    if type(value) in (list, tuple, dict, set):
        parts = [*value, *value.values()] if type(value) is dict else value
        return len(value) <= MAX_PARTS and all(map(_is_scalar, parts))
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str) or isinstance(value, enum.Enum)


def other_settings(value: Any, words: Iterable[str] = ()) -> list[Any]:
    """What an attribute may be set to instead.

    Args:
        value: what it is.
        words: what words may mean something to the code.
    """
    if type(value) is bool:
        return [not value]
    if isinstance(value, enum.Enum):
        return [m for m in type(value) if m is not value][:MAX_WORDS]
    if type(value) is int:
        return [v for v in dict.fromkeys((value + 1, value - 1, 0, 1)) if v != value and v >= 0]
    if type(value) is float:
        return [v for v in dict.fromkeys((value / 2, 0.0, 1.0)) if v != value]
    if type(value) in (list, tuple):
        return [v for v in (value[:-1], value + value[-1:], value[::-1]) if v and v != value]
    if type(value) is set:
        return [value - {v} for v in value]
    if type(value) is dict:
        return [{**value, k: o} for k, v in value.items() for o in other_settings(v, words)[:1]]
    return [*(w for w in words if w != value), "something else"]


def names_in(function: Any) -> set[str]:
    """Every name that a function and the functions inside it look up."""
    return {n for code in _codes(function) for n in code.co_names}


def _codes(function: Any) -> Iterator[Any]:
    codes: list[Any] = [f.__code__ for f in behind(function)]
    while codes:
        code = codes.pop()
        codes += [c for c in code.co_consts if inspect.iscode(c)]
        yield code


def words_of(module: nn.Module, functions: Iterable[Callable[..., Any]]) -> list[str]:
    """Words that mean something to a module's code: those it is compared with, and the names in its dictionaries."""
    out: list[str] = []
    for code in (c for f in functions for c in _codes(f)):
        for const in code.co_consts:
            out += [w for w in (const if isinstance(const, (tuple, frozenset)) else (const,)) if type(w) is str]
    own = [v for n, v in vars(module).items() if n not in EVERY_MODULE]
    for held in (*own, *module._modules.values()):
        if isinstance(held, (dict, nn.ModuleDict, nn.ParameterDict)):
            out += [k for k in held.keys() if type(k) is str]  # noqa: SIM118 - a ModuleDict is no mapping
    return [w for w in dict.fromkeys(out) if " " not in w][:MAX_WORDS]


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
