"""Listing: whether code that could not be followed gets at the tensors below a module without naming them."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Any

from reptool.function_text import tree_of

_LISTS = {"parameters", "named_parameters", "buffers", "named_buffers"}


@functools.lru_cache(maxsize=1024)
def lists_tensors(function: Callable[..., Any]) -> bool:
    """Whether a function asks for all parameters, buffers or the state of something.

    ``next(self.parameters())`` is how code asks for a device or a dtype, which no fused layer changes: it does not
    count.

    Args:
        function: the method, as the class holds it.
    """
    tree = tree_of(inspect.unwrap(function))
    if tree is None:
        return False
    first = {
        id(n.args[0])
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "next" and n.args
    }
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    names = {c.func.attr for c in calls if id(c) not in first}  # type: ignore[attr-defined]
    return bool(names & (_LISTS | {"state_dict"}))
