"""Settings that code reads off a class and not off a module: ``type(self).gain``, ``super().gain``, ``cls.gain``.

Nothing sees such a read while tracing. So where code mentions a class of a module at all, every plain attribute of that
class which the code names counts as read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import nn

from reptool.ir.trace import Event, Setting
from reptool.pysource.functions import codes_in
from reptool.pysource.globals_read import functions_of
from reptool.rewrite.settings.held_functions import code_of
from reptool.runtime.snapshot import taken

_CLASS_OF_IT = "__class__"


def class_settings(event: Event, method: Any) -> Iterator[Setting]:
    """What the method of a call may read off the classes of its module and of the modules inside of that one.

    Args:
        event: the call.
        method: as its class holds it.
    """
    names, above = _named(method)
    if not names:
        return
    for path, module in event.module.named_modules(prefix=event.path):
        for cls in type(module).__mro__:
            for name in names & vars(cls).keys() if _is_of_users(cls) else ():
                if not _is_code(vars(cls)[name]):
                    value = getattr(type(module), name, None)
                    yield Setting(path, f"{_CLASS_OF_IT}.{name}", taken(value), 0, kind=type(module))
                    if above:
                        yield Setting(path, name, taken(getattr(cls, name, None)), 0, kind=cls, of_class=True)


def _named(method: Any) -> tuple[frozenset[str], bool]:
    """Names that may be attributes of a class in code that mentions one, and whether it asks the class above it."""
    function = code_of(method)
    if function is None:
        return frozenset(), False
    of_class, names, above = isinstance(method, classmethod), set[str](), False
    for one in functions_of(function):
        for code in codes_in(one.__code__):
            above |= _CLASS_OF_IT in code.co_freevars
            of_class |= above or not {"type", _CLASS_OF_IT}.isdisjoint(code.co_names)
            names |= _words(code)
    return (frozenset(names), above) if of_class else (frozenset(), False)


def _words(code: CodeType) -> frozenset[str]:
    """What a code calls by name, also as text (``getattr(cls, "gain")``)."""
    return frozenset(code.co_names) | {c for c in code.co_consts if isinstance(c, str)}


def _is_of_users(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in ("torch", "builtins", "abc", "typing", "reptool")


def _is_code(value: Any) -> bool:
    """Whether an attribute of a class is no value but code, a part of a model, or found by code."""
    kinds = (type, nn.Module, classmethod, staticmethod, property, functools.cached_property)
    return isinstance(value, kinds) or callable(value) or inspect.isdatadescriptor(value) or hasattr(value, "__get__")
