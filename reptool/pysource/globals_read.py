"""What a function reads that is neither an argument nor an attribute: globals, closure cells, switches of a library.

A name is followed through its attributes (``config.model.raw``, ``torch.backends.cudnn.enabled``) to the first plain
value. A call of foreign code with constants alone (``os.environ.get("RAW")``, ``CONTEXT.get()``) is a setting as well
if its answer is plain and used. Functions of the model's own package are read in turn. Modules, classes and functions
of torch decide nothing by themselves, and what asks whether the program is being scripted, traced or exported is
answered by whoever does that.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from reptool.pysource.functions import behind, codes_in, tree_of
from reptool.runtime.snapshot import PLAIN, same, snapshot, taken

_TRANSFORMS = ("torch.jit", "torch._jit_internal", "torch.compiler", "torch.onnx", "torch._dynamo", "torch.fx")
"""Where the questions live whether a program is being transformed."""
_ASKED = ("is_grad_enabled", "is_inference_mode_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled")
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
_MISSING = object()


@dataclass(frozen=True)
class Outside:
    """A value that a function reads from outside of the model.

    Args:
        function: that reads it.
        name: the global or the free variable.
        steps: attributes from there on.
        call: constants of the call whose answer it is, None if it is no call.
        value: a snapshot of what it was, or why there is none.
        cell: index of the closure cell, None for a global.
    """

    function: FunctionType
    name: str
    steps: tuple[str, ...]
    call: tuple[Any, ...] | None
    value: Any
    cell: int | None = None

    def __str__(self) -> str:
        called = "" if self.call is None else f"({', '.join(map(repr, self.call))})"
        return ".".join((self.name, *self.steps)) + called


def read_outside(method: Callable[..., Any]) -> list[Outside]:
    """Every setting that a method, and functions of its package that it names, read from outside of the model."""
    return _followed(method)[0]


def functions_of(method: Callable[..., Any]) -> list[FunctionType]:
    """A method, what it wraps, and the functions of its package that it names."""
    return _followed(method)[1]


def _followed(method: Callable[..., Any]) -> tuple[list[Outside], list[FunctionType]]:
    found: dict[tuple[Any, ...], Outside] = {}
    queue, seen = list(behind(method)), dict[FunctionType, None]()
    while queue:
        function = queue.pop(0)
        if function in seen:
            continue
        seen[function] = None
        for one in (*_globals_of(function), *_cells_of(function)):
            if isinstance(one, FunctionType):
                queue += behind(one)
            else:
                found.setdefault((id(one.function.__globals__), one.cell, str(one)), one)
    return list(found.values()), list(seen)


def _globals_of(function: FunctionType) -> Iterator[Outside | FunctionType]:
    for name, steps, call in _mentions(function):
        value, used = function.__globals__.get(name, _MISSING), 0
        while value is not _MISSING and used < len(steps) and not _is_plain(value):
            value, used = getattr(value, steps[used], _MISSING), used + 1
        if value is not _MISSING:
            whole = used == len(steps)
            yield from _setting(function, name, steps[:used], call if whole else _NO_CALL, value)


def _cells_of(function: FunctionType) -> Iterator[Outside | FunctionType]:
    written = {"__class__", *_written_in(function)}
    for i, (name, cell) in enumerate(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)):
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if not isinstance(value, FunctionType) and name not in written and not _is_silent(value):
            yield Outside(function, name, (), None, taken(value), i)


@dataclass(frozen=True)
class _Call:
    """How a name is used: called, with which constants, and whether the answer is."""

    called: bool = False
    constants: tuple[Any, ...] | None = None
    used: bool = True


_NO_CALL = _Call()


def _setting(
    function: FunctionType, name: str, steps: tuple[str, ...], call: _Call, value: Any
) -> Iterator[Outside | FunctionType]:
    if isinstance(value, FunctionType) and _package(value) == _package(function):
        yield value
        yield Outside(function, name, steps, None, taken(value))
    elif call.called and callable(value) and not isinstance(value, type):
        if call.constants is not None and call.used and not _is_asked_elsewhere(value):
            answer = _answer(value, call.constants)
            if answer is not _MISSING:
                yield Outside(function, name, steps, call.constants, answer)
        elif call.constants is None and (owner := _owner(value)) is not None:
            yield Outside(function, name, steps[:-1], None, taken(owner))
    elif not _is_silent(value):
        yield Outside(function, name, steps, None, taken(value))


def _answer(function: Callable[..., Any], constants: tuple[Any, ...]) -> Any:
    """What foreign code answers to constants, where that is plain and the same twice."""
    try:
        first = function(*constants)
        seen = snapshot(first) if _is_plain(first) or isinstance(first, PLAIN) else _MISSING
        return seen if seen is not _MISSING and same(function(*constants), seen) else _MISSING
    except Exception:  # whatever foreign code raises
        return _MISSING


def _is_asked_elsewhere(function: Any) -> bool:
    """Whether a function says how a program is being transformed, or what is asked while tracing."""
    home = getattr(function, "__module__", None) or ""
    return home.startswith(_TRANSFORMS) or getattr(function, "__name__", "") in _ASKED


def _owner(method: Any) -> Any:
    """The object that a bound method belongs to, if that is no module and no class."""
    owner = method.__self__ if isinstance(method, (MethodType, BuiltinMethodType)) else None
    return None if owner is None or isinstance(owner, (ModuleType, type)) or _is_silent(owner) else owner


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, _PLAIN)


def _is_silent(value: Any) -> bool:
    """Whether a value by itself decides nothing: code, a type, a part of a model, a weight."""
    kinds = (ModuleType, type, nn.Module, nn.Parameter, torch.dtype, torch.memory_format, torch.layout)
    return isinstance(value, kinds) or callable(value)


def _package(function: FunctionType) -> str:
    return str(function.__globals__.get("__name__", "")).partition(".")[0]


# --- the text -------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=4096)
def _mentions(function: FunctionType) -> tuple[tuple[str, tuple[str, ...], _Call], ...]:
    """Every global that a function's own code names, with the attributes behind it and the call it is in."""
    names = {n for code in codes_in(function.__code__) for n in code.co_names} & function.__globals__.keys()
    tree = tree_of(function)
    if tree is None:
        return tuple((n, (), _NO_CALL) for n in sorted(names))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    found: dict[tuple[str, tuple[str, ...], _Call], None] = {}
    written = _written_in(function)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name) or node.id not in names - written or _in_signature(node, parents):
            continue
        steps, last = _steps(node, parents)
        found[node.id, steps, _call_of(last, parents)] = None
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _written_in(function: FunctionType) -> frozenset[str]:
    """Names of what code writes into (an item, a list that it appends to): stores of its own, and no settings."""
    tree = tree_of(function)
    return frozenset(name for n in ast.walk(tree) if (name := _written(n))) if tree is not None else frozenset()


def _written(node: ast.AST) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        held: ast.AST = node.value.func.value  # a method that is called for what it does
    elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        held = node.value
    else:
        return ""
    return held.id if isinstance(held, ast.Name) else ""


def _in_signature(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a name is in an annotation, a default or a decorator, which run when the function is made."""
    while node in parents:
        above = parents[node]
        if isinstance(above, ast.arguments) or (isinstance(above, ast.arg) and node is above.annotation):
            return True
        if isinstance(above, ast.AnnAssign) and node is above.annotation:
            return True
        if isinstance(above, ast.FunctionDef) and (node in above.decorator_list or node is above.returns):
            return True
        node = above
    return False


def _steps(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[tuple[str, ...], ast.AST]:
    steps: list[str] = []
    while isinstance(above := parents.get(node), ast.Attribute) and isinstance(above.ctx, ast.Load):
        steps.append(above.attr)
        node = above
    return tuple(steps), node


def _call_of(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> _Call:
    above = parents.get(node)
    if not isinstance(above, ast.Call) or above.func is not node:
        return _NO_CALL
    used = not isinstance(parents.get(above), ast.Expr)
    if above.keywords or not all(isinstance(a, ast.Constant) for a in above.args):
        return _Call(True, None, used)
    return _Call(True, tuple(a.value for a in above.args if isinstance(a, ast.Constant)), used)


def is_importable(function: FunctionType) -> bool:
    """Whether a function's globals are those of a module that can be imported by its name."""
    module = sys.modules.get(str(function.__globals__.get("__name__")))
    return module is not None and vars(module) is function.__globals__
