"""Checks of settings: a method that is guarded compares each setting it depends on with its value while tracing."""

from __future__ import annotations

import functools
import inspect
import keyword
from collections.abc import Collection, Iterable
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

import torch

from reptool.ir.paths import lies_in
from reptool.ir.trace import Event, Setting
from reptool.pysource.globals_read import Outside, is_importable, read_outside
from reptool.rewrite.constants import CannotCutError, Constants, address
from reptool.rewrite.kind_checks import KindCheck, KindOf
from reptool.rewrite.method_source import Check
from reptool.rewrite.settings.held_functions import code_of, held_functions
from reptool.rewrite.settings.of_classes import class_settings
from reptool.runtime.snapshot import ABSENT, PLAIN, Function, Items, taken


def setting_checks(event: Event, settings: Iterable[Setting | Outside | KindOf]) -> list[Check]:
    """The checks for a method.

    Args:
        event: a call of the method.
        settings: what was read; the same in every call.

    Raises:
        CannotCutError: one of them has no value that a later one can be compared with, or was two different ones.
    """
    found: dict[str, Check] = {}
    for setting in settings:
        if isinstance(setting, KindOf):
            made: Check = KindCheck(setting)
        elif isinstance(setting.value, Exception):
            raise CannotCutError(f"it reads {setting}, which cannot be compared with a later value ({setting.value})")
        else:
            made = _attribute(event, setting) if isinstance(setting, Setting) else _outside(event, setting)
        known = found.setdefault(made.name, made)
        if _are_of_one_kind(known, made):
            found[made.name] = made if known.seen[0].follows else known  # what holds for one dtype alone decides
            continue
        if known.seen[0] != made.seen[0]:
            raise CannotCutError(f"it reads {made.name}, which changes while it runs")
    return list(found.values())


def _are_of_one_kind(known: Check, made: Check) -> bool:
    """Whether two checks want the same kind of a tensor, and one of them lets it follow the model."""
    if not isinstance(known, KindCheck) or not isinstance(made, KindCheck):
        return False
    return replace(known.asked, follows=False) == replace(made.asked, follows=False)


def path_text(base: str, path: str) -> str | None:
    """The expression for the module at a path in a method of the one at `base`; None where it lies outside."""
    lead = f"{base}." if base else ""
    if path != base and not path.startswith(lead):
        return None
    text = "self"
    for part in path[len(lead) :].split(".") if path != base else ():
        plain = part.isidentifier() and not keyword.iskeyword(part)
        text = f"{text}.{part}" if plain else f"getattr({text}, {part!r})"
    return text


def _attribute(event: Event, setting: Setting) -> Check:
    if setting.of_class:
        return Check(str(setting), functools.partial(_of_class, setting), (setting.value,), exact=True)
    text = path_text(event.path, setting.path)
    if text is None:
        raise CannotCutError(f"it reads {setting}, which lies outside of it")
    if setting.name.endswith("()"):
        method = setting.name[:-2]
        return Check(f"{text}.{method}", f"_defaults_of(type({text}), {method!r})", (setting.value,), exact=True)
    *tensor, name = setting.name.split(".")
    if tensor and name in ("dtype", "device"):
        held = ".".join(tensor)
        kind = setting.value.type if isinstance(setting.value, torch.device) else setting.value
        return KindCheck(KindOf(f"{text}.{held}", name, kind, setting.follows, f"_held({text}, {held!r})"))
    if tensor:
        return Check(f"{text}.{setting.name}", f"{text}.{setting.name}", (setting.value,), exact=True)
    simple = name.isidentifier() and not keyword.iskeyword(setting.name) and not setting.name.startswith("__")
    if simple and setting.value is not ABSENT and text == "self":
        return Check(f"{text}.{setting.name}", f"{text}.{setting.name}", (setting.value,), exact=True)
    read = f"getattr({_found(event.path, setting.path)}, {setting.name!r}, _absent)"
    return Check(f"{text}.{setting.name}", read, (setting.value,), exact=True)


def _found(base: str, path: str) -> str:
    """The same as `path_text`, for a module that may be another one by now."""
    text = "self"
    for part in path[len(base) :].strip(".").split(".") if path != base else ():
        text = f"getattr({text}, {part!r}, _absent)"
    return text


def _of_class(setting: Setting, constants: Constants) -> str:
    """The text for an attribute of a class, of which no module is left."""
    kind = constants.text(setting.kind) if address(setting.kind) is not None else constants.keep(setting.kind, "_kind")
    if setting.name.endswith("()"):
        return f"_defaults_of({kind}, {setting.name[:-2]!r})"
    return f"getattr({kind}, {setting.name.rpartition('.')[2]!r}, _absent)"


def _outside(event: Event, setting: Outside) -> Check:
    def text(constants: Constants) -> str:
        steps = "".join(f".{s}" for s in setting.steps)
        called = "" if setting.call is None else f"({', '.join(constants.text(c) for c in setting.call)})"
        return f"{_holder(event, setting, constants)}{steps}{called}"

    return Check(str(setting), text, (setting.value,), exact=True)


def _holder(event: Event, setting: Outside, constants: Constants) -> str:
    """The text for a global or a free variable itself."""
    function = setting.function
    if setting.cell is None and is_importable(function):
        return constants.member(str(function.__globals__["__name__"]), setting.name)
    own: Any = inspect.getattr_static(type(event.module), event.method, None)
    if function is not own:
        raise CannotCutError(f"it reads {setting} of {function.__qualname__}, which cannot be reached from it")
    if setting.cell is None:
        return f"_original.__globals__[{setting.name!r}]"
    return f"_original.__closure__[{setting.cell}].cell_contents"


_HELD = (FunctionType, MethodType, functools.partial)
"""What an attribute holds, and no class: functions."""


def outside_of(event: Event) -> list[Setting | Outside]:
    """What the method of a call reads from outside of the model and off its classes, and its own defaults."""
    method = inspect.getattr_static(type(event.module), event.method, None)
    function = code_of(method)
    found: list[Setting | Outside] = []
    for member in held_functions(event.module, method):
        read = [] if (code := code_of(member)) is None else read_outside(code)
        known = member is not method and isinstance(member, _HELD)  # the setting that holds it looks at its cells
        found += [*class_settings(event, member), *(one for one in read if not known or one.cell is None)]
    if isinstance(function, FunctionType) and (function.__defaults__ or function.__kwdefaults__):
        value = taken((function.__defaults__, function.__kwdefaults__))
        found.append(Setting(event.path, f"{event.method}()", value, 0, kind=type(event.module)))
    return found


def settings_of(events: Iterable[Event]) -> list[Setting | Outside]:
    """Everything that calls read which are written out in one method: it is written into it."""
    found: list[Setting | Outside] = []
    for event in events:
        found += event.settings
        found += outside_of(event)
    return found


def after(settings: Iterable[Setting | Outside], gone: Collection[str]) -> list[Setting | Outside]:
    """Settings as they can be read once modules are absorbed: what cannot change any more needs no check.

    Args:
        settings: what was read.
        gone: paths of the modules that are absorbed.

    Raises:
        CannotCutError: what an absorbed module held may be changed by somebody else who holds it.
    """
    found: list[Setting | Outside] = []
    for setting in settings:
        if not isinstance(setting, Setting) or not lies_in(setting.path, gone):
            found.append(setting)
        elif setting.name == "training" and not setting.by_torch:
            found.append(setting)  # what is absorbed goes from mode to mode with the model
        elif setting.kind is not None:
            found.append(replace(setting, of_class=True))
        elif not is_fixed_value(setting.value):
            raise CannotCutError(f"it reads {setting}, whose module is absorbed")
    return found


def is_fixed_value(value: Any) -> bool:
    """Whether nobody can change a value, as a snapshot holds it: a number, a tuple, a function that holds nothing."""
    if isinstance(value, Items):
        return value.type is tuple and all(map(is_fixed_value, value.items))
    if isinstance(value, Function):
        return all(held is None for held in value.held)  # the globals that it reads are settings of their own
    return isinstance(value, PLAIN)
