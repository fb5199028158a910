"""Everything a change may touch, remembered once and put back after every try."""

from __future__ import annotations

import contextvars
import functools
import os
import random
import types
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from reptool.testing._perturbing.code import Code, is_own

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, torch.dtype, torch.device)
_CLASS_OWN = frozenset(("__dict__", "__weakref__", "__doc__", "__module__", "__abstractmethods__", "_abc_impl"))
MAX_DEPTH = 12


class _Table:
    """What a dictionary held, and whether it still does."""

    def __init__(self, table: dict[Any, Any]) -> None:
        self.table, self.before = table, dict(table)
        self.keys, self.ids = list(table), list(map(id, table.values()))

    def restore(self) -> None:
        now = self.table
        if not now and not self.before:
            return
        if list(map(id, now.values())) == self.ids and list(now) == self.keys:
            return
        for key in [key for key in now if key not in self.before]:
            del now[key]
        if list(now) != self.keys:
            for key in list(now):
                del now[key]
        now.update(self.before)


class Snapshot:
    """The state of models and of their code, shallow for each object that is reached from them.

    Args:
        model: what is remembered with all it holds.
        code: whose globals, classes, defaults and closures are remembered.
    """

    def __init__(self, model: nn.Module, code: Code) -> None:
        self.modules: list[tuple[nn.Module, type[nn.Module]]] = []
        self.tables: list[_Table] = []
        self.sequences: list[tuple[Any, list[Any]]] = []
        self.sets: list[tuple[set[Any], set[Any]]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.functions: list[tuple[types.FunctionType, Any, Any]] = []
        self.variables: list[tuple[contextvars.ContextVar[Any], Any]] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor, bool]] = []
        self.classes: list[tuple[type, dict[str, Any]]] = []
        namespaces: dict[int, dict[str, Any]] = {}
        self._seen: set[int] = set()
        self._reach(model, 0)
        for _, function in code.functions:
            self._reach(function, 0)
        for names, name in code.globals.values():
            namespaces[id(names)] = names
            self._reach(names[name], 0)
        self.tables += [_Table(names) for names in namespaces.values()]
        for kind in code.classes:
            self._class(kind)
        self.environment = dict(os.environ)
        self.switches = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
        )
        self.generators = (torch.get_rng_state(), random.getstate())

    def _reach(self, value: Any, depth: int) -> None:  # long: a case for each sort of object
        if isinstance(value, _ATOMS) or id(value) in self._seen or depth > MAX_DEPTH:
            return
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, nn.Module):
            self.modules.append((value, type(value)))
            self.tables.append(_Table(vars(value)))
            for kind in type(value).__mro__:
                if is_own(kind.__module__) or kind.__module__.startswith("reptool."):
                    self._class(kind)
            for held in vars(value).values():
                self._reach(held, 1)  # however deep the module is
        elif isinstance(value, dict):
            self.tables.append(_Table(value))
            for held in value.values():
                self._reach(held, depth + 1)
        elif isinstance(value, (list, deque)):
            self.sequences.append((value, list(value)))
            for held in value:
                self._reach(held, depth + 1)
        elif isinstance(value, set):
            self.sets.append((value, set(value)))
        elif isinstance(value, (tuple, frozenset)):
            for held in value:
                self._reach(held, depth + 1)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif isinstance(value, contextvars.ContextVar):
            self.variables.append((value, value.get(None)))
        elif isinstance(value, types.MethodType):
            self._reach(value.__func__, depth + 1)
        elif isinstance(value, functools.partial):
            for held in (value.func, value.args, value.keywords):
                self._reach(held, depth + 1)
        elif hasattr(value, "__dict__") and (is_own(type(value).__module__) or type(value).__module__ in _HELD):
            self.tables.append(_Table(vars(value)))
            for held in vars(value).values():
                self._reach(held, depth + 1)

    def _class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        held = {k: v for k, v in vars(kind).items() if k not in _CLASS_OWN}
        self.classes.append((kind, held))
        for value in held.values():
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            self._reach(value, 1)

    def _tensor(self, tensor: Tensor) -> None:
        try:
            self.tensors.append((tensor, tensor.data, tensor.detach().clone(), tensor.requires_grad))
        except Exception:  # a tensor without values, or of a library's own kind
            return

    def _function(self, function: types.FunctionType, depth: int) -> None:
        if str(function.__module__).partition(".")[0] == "torch":
            return
        self.functions.append((function, function.__defaults__, function.__kwdefaults__))
        self._reach(function.__kwdefaults__, depth + 1)
        self._reach(function.__defaults__, depth + 1)
        for cell in function.__closure__ or ():
            try:
                self.cells.append((cell, cell.cell_contents))
            except ValueError:
                continue
            self._reach(cell.cell_contents, depth + 1)

    def restore(self) -> None:
        """Put everything back."""
        for module, kind in self.modules:
            if type(module) is not kind:
                module.__class__ = kind
        for table in self.tables:
            table.restore()
        for sequence, items in self.sequences:
            if not _same_items(list(sequence), items):
                sequence.clear()
                sequence.extend(items)
        for found, members in self.sets:
            found.clear()
            found.update(members)
        for cell, held in self.cells:
            cell.cell_contents = held
        for function, defaults, by_name in self.functions:
            function.__defaults__, function.__kwdefaults__ = defaults, by_name
        for variable, held in self.variables:
            variable.set(held)
        for kind, attributes in self.classes:
            _restore_class(kind, attributes)
        self._restore_process()
        self._restore_tensors()

    def _restore_process(self) -> None:
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        deterministic, only_warns, dtype, threads = self.switches
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        if torch.get_default_dtype() != dtype:
            torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_rng_state(self.generators[0])
        random.setstate(self.generators[1])

    def _restore_tensors(self) -> None:
        with torch.no_grad():
            for tensor, data, _, learns in self.tensors:
                if tensor.data_ptr() != data.data_ptr() or tensor.dtype != data.dtype or tensor.shape != data.shape:
                    tensor.data = data
                if tensor.requires_grad != learns:
                    tensor.requires_grad_(learns)
            if self.tensors:
                torch._foreach_copy_([entry[1] for entry in self.tensors], [entry[2] for entry in self.tensors])


_HELD = frozenset(("types", "argparse", "_thread", "reptool.runtime.originals"))


def _restore_class(kind: type, before: dict[str, Any]) -> None:
    now = vars(kind)
    for name in [name for name in now if name not in before and name not in _CLASS_OWN]:
        type.__delattr__(kind, name)
    for name, value in before.items():
        if now.get(name) is not value:
            type.__setattr__(kind, name, value)


def _same_items(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
