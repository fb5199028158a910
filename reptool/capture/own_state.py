"""Whether a forward can have state of its own: what ran is looked at, so that most need no second run.

State is written or mutated somewhere: an attribute, a container, an object, a global, a closure cell. A run of which
the following holds leaves none behind, and depends on none that an earlier run left:

- every module holds the same objects as before, and no call has an effect beside its value;
- what the code read of modules was a part, a weight, a method, or a value that nothing can change;
- the code that ran, and every method, property or function that it may reach by a name, writes no attribute, global or
  free variable, and names nothing outside but torch, such functions and values that nothing can change.

All else (a list that is read, a class that is made, a decorator, a hook, code that is not followed) is no proof of
state; what such a forward does is seen by a second run (`replay_check`).
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import nn

from reptool.capture.evaluation.on_meta import is_hooked
from reptool.ir.trace import Input, Trace, all_events
from reptool.pysource.functions import codes_in
from reptool.runtime.containers import leaves
from reptool.runtime.snapshot import ABSENT

_LOCAL = ("STORE_FAST", "STORE_SUBSCR", "STORE_SLICE", "DELETE_FAST", "DELETE_SUBSCR")
"""Instructions that write what only this call holds, given that it holds nothing of others."""
_STEPS = frozenset({
    "abs", "all", "any", "bool", "bytes", "dict", "divmod", "enumerate", "filter", "float", "format", "frozenset",
    "getattr", "hasattr", "int", "isinstance", "issubclass", "len", "list", "map", "max", "min", "pow", "range", "repr",
    "reversed", "round", "set", "slice", "sorted", "str", "sum", "super", "tuple", "type", "zip",
})  # fmt: skip
"""Builtins that give a value and do nothing else, given that what they are handed does not."""
_LIBRARIES = frozenset({"torch", "math", "operator", "typing", "builtins", "itertools", "functools", "collections"})
_VALUES = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip
_MAKING = frozenset({
    "__init__", "__new__", "__init_subclass__", "__repr__", "__str__", "__dir__", "__class__", "__dict__",
    "__weakref__",
    "__setattr__", "__delattr__", "__deepcopy__", "__copy__", "__getstate__", "__setstate__", "__reduce__",
    "__reduce_ex__",
})  # fmt: skip
"""Methods of classes that no forward reaches without naming them, or without writing."""
Held = list[tuple[nn.Module, dict[str, Any]]]


def holds_nothing(value: Any) -> bool:
    """Whether nothing can change a value: numbers, names, tuples of these, functions of torch.

    >>> holds_nothing((1, "a")), holds_nothing([1])
    (True, False)
    """
    if isinstance(value, (tuple, frozenset)):
        return all(map(holds_nothing, value))
    is_torchs = isinstance(value, (FunctionType, BuiltinFunctionType, type)) and _library_of(value) == "torch"
    return value is ABSENT or isinstance(value, _VALUES) or (is_torchs and not _is_bound(value))


def _is_bound(function: Any) -> bool:
    """Whether calling a function written in C is calling a method of some object."""
    return not isinstance(getattr(function, "__self__", None), (type(None), ModuleType, type))


def held_by(root: nn.Module) -> Held:
    """What each module holds."""
    return [(m, _flat(m)) for m in root.modules()]


def _flat(module: nn.Module) -> dict[str, Any]:
    own = vars(module)
    return {**own, **{f".{t}.{n}": v for t in ("_parameters", "_buffers", "_modules") for n, v in own[t].items()}}


def leaves_no_state(trace: Trace, before: Held, inputs: Any, plain: bool) -> bool:
    """Whether a run left nothing behind that another run could read.

    Args:
        trace: the run.
        before: what the modules held before it.
        inputs: what the forward was given.
        plain: whether nothing that can change was read of a module.
    """
    events = list(all_events(trace.top))
    if not plain or trace.opaque or any(e.effects for e in events):
        return False
    if not all(isinstance(v, Input) or holds_nothing(v) for v in leaves(inputs)):
        return False
    if any(_is_changed(_flat(module), held) for module, held in before) or any(is_hooked(m) for m, _ in before):
        return False
    started = {(type(e.module), e.method) for e in events}
    return _Code({type(m) for m, _ in before}).is_plain(started)


def _is_changed(now: dict[str, Any], held: dict[str, Any]) -> bool:
    return now.keys() != held.keys() or any(now[name] is not value for name, value in held.items())


class _Code:
    """What the code of a model's classes names.

    Args:
        classes: of all its modules.
    """

    def __init__(self, classes: set[type]) -> None:
        self.own = {c: None for cls in classes for c in cls.__mro__ if _library_of(c) not in _LIBRARIES}

    def is_plain(self, started: Iterable[tuple[type, str]]) -> bool:
        """Whether methods, and all that they may reach by a name, write nothing and name nothing that can change."""
        if any({"__getattr__", "__getattribute__"} & vars(c).keys() for c in self.own):
            return False
        operators = {n for c in self.own for n in vars(c) if n.startswith("__") and n not in _MAKING}
        queue = [f for cls, name in started for f in self._named(name, cls.__mro__)]
        queue += [f for name in operators for f in self._named(name)]
        seen: set[Any] = set()
        while queue:
            function = queue.pop()
            if function in seen or _library_of(function) == "torch":
                continue
            seen.add(function)
            reached = self._reached(function) if isinstance(function, FunctionType) else None
            if reached is None:
                return False
            queue += reached
        return True

    def _named(self, name: str, classes: Iterable[type] | None = None) -> Iterator[Any]:
        """What classes of the model's hold under a name, as far as it is code."""
        for cls in self.own if classes is None else classes:
            value = vars(cls).get(name)
            if isinstance(value, property):
                yield value.fget
            elif isinstance(value, (staticmethod, classmethod)):
                yield value.__func__
            elif isinstance(value, FunctionType) or hasattr(type(value), "__get__"):
                yield value

    def _may_change(self, name: str) -> bool:
        """Whether a class holds something under a name that is neither code nor a value that nothing can change."""
        held = [vars(cls)[name] for cls in self.own if name in vars(cls)]
        return not all(holds_nothing(v) or hasattr(type(v), "__get__") for v in held)

    def _reached(self, function: FunctionType) -> list[Any] | None:
        """What a function may call, as far as it has to be looked at; None where it writes or may read what changes."""
        names = _names_in(function.__code__)
        given = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        if names is None or hasattr(function, "__wrapped__") or not all(map(holds_nothing, given)):
            return None
        attributes, outside, free = names
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        try:
            found = [cells[name].cell_contents for name in free - {"__class__"}]
        except ValueError:  # nothing is in it yet
            return None
        for name in outside:
            if name in function.__globals__:
                found.append(function.__globals__[name])
            elif name not in _STEPS and not _is_error(getattr(builtins, name, None)):
                return None
        code = [v for v in found if isinstance(v, FunctionType) and _library_of(v) not in _LIBRARIES]
        if not all(v in code or _is_safe(v) for v in found) or any(map(self._may_change, attributes)):
            return None
        return [*code, *(f for name in attributes for f in self._named(name))]


def _is_safe(value: Any) -> bool:
    """Whether what a function names outside of it can hold no state of the model's."""
    library = isinstance(value, (ModuleType, type, FunctionType, BuiltinFunctionType)) and not _is_bound(value)
    return holds_nothing(value) or _is_error(value) or (library and _library_of(value) in _LIBRARIES)


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _library_of(value: Any) -> str:
    """The top package that a module, class or function belongs to."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return str(home or "torch" if isinstance(value, BuiltinFunctionType) else home).partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]] | None:
    """The attributes, globals and free variables that code names; None where it writes any, or imports.

    Settings of the process (``torch.set_...``) are written by a call.
    """
    attributes, outside, free = set[str](), set[str](), set[str]()
    for part in codes_in(code):
        steps = list(dis.get_instructions(part))
        for i, step in enumerate(steps):
            name = step.opname
            if name.startswith(("STORE_", "DELETE_", "IMPORT_")) and not name.startswith(_LOCAL):
                if name != "STORE_DEREF" or step.argval not in part.co_cellvars:
                    return None
            elif name in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in ("getattr", "hasattr"):
                asked = _constant_behind(steps[i + 1 :])
                if asked is None:
                    return None
                attributes.add(asked)
                outside.add(str(step.argval))
            elif name in ("LOAD_GLOBAL", "LOAD_NAME"):
                outside.add(str(step.argval))
            elif name.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER")):
                attributes.add(str(step.argval))
        free.update(part.co_freevars if part is code else ())
    written = any(n.startswith("set_") or n.endswith("seed") or n == "__dict__" for n in (*attributes, *outside))
    return None if written else (frozenset(attributes), frozenset(outside), frozenset(free))


def _constant_behind(steps: list[dis.Instruction]) -> str | None:
    """The name in ``getattr(value, "name")``, None where it is no constant."""
    for step in steps[1:]:
        if step.opname == "LOAD_CONST":
            return step.argval if isinstance(step.argval, str) else None
        if not step.opname.startswith(("LOAD_ATTR", "LOAD_FAST", "LOAD_DEREF", "PRECALL", "RESUME", "CACHE")):
            return None
    return None
