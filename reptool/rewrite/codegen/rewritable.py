"""Which functions can be written anew from their trace: those that do nothing the trace does not show."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any

from reptool.pysource.functions import behind
from reptool.rewrite.constants import CannotCutError


def check_rewritable(function: Callable[..., Any]) -> None:
    """Raise where printing a method from its trace would lose something it does."""
    parts = behind(function)
    if not parts:
        raise CannotCutError("it is not a Python function")
    for part in parts:
        _check_part(part)
    optional = [p for p in list(inspect.signature(function).parameters.values())[1:] if not _is_required(p)]
    if len(parts) > 1 and optional:  # a decorator may tell what is left out from what is given
        raise CannotCutError(f"it is decorated, and takes {optional[0].name!r}, which may be left out")


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and parameter.kind not in variadic


def _check_part(function: FunctionType) -> None:
    code = function.__code__
    instructions = list(dis.get_instructions(code))
    names = {i.opname for i in instructions}
    if names & {"SETUP_WITH", "BEFORE_WITH", "LOAD_SPECIAL", "WITH_EXCEPT_START"}:
        raise CannotCutError("it has a `with` block")
    if names & {"PUSH_EXC_INFO", "SETUP_FINALLY"}:
        raise CannotCutError("it has a `try` block")
    if names & {"STORE_ATTR", "STORE_GLOBAL", "DELETE_ATTR"}:
        raise CannotCutError("it writes attributes")
    kept = {n: c for n, c in zip(code.co_freevars, function.__closure__ or (), strict=True) if n != "__class__"}
    written = {i.argval for i in instructions if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
    if code.co_flags & inspect.CO_GENERATOR or written & set(kept) or not all(map(_holds_function, kept.values())):
        raise CannotCutError("it is a generator or closes over variables")


def _holds_function(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:
        return False
