"""Whether code that could not be followed enumerates the tensors of a module (`parameters`, `buffers`, its state)."""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from typing import Any

from reptool.pysource.functions import tree_of

_LISTS = {"parameters", "named_parameters", "buffers", "named_buffers"}


@functools.lru_cache(maxsize=1024)
def lists_tensors(function: Callable[..., Any]) -> bool:
    """Whether a function asks for all parameters, buffers or the state of something.

    ``next(self.parameters())`` and ``next(p.dtype for p in self.parameters())`` are how code asks for a device or a
    dtype, which no fused layer changes: they do not count.

    Args:
        function: the method, as the class holds it.
    """
    tree = tree_of(inspect.unwrap(function))
    if tree is None:
        return False
    first = {
        id(_listed(n.args[0]))
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "next" and n.args
    }
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    names = {c.func.attr for c in calls if id(c) not in first}  # type: ignore[attr-defined]
    return bool(names & (_LISTS | {"state_dict"}))


def _listed(node: ast.expr) -> ast.expr:
    """What ``next`` takes the first of, looked up behind a comprehension that asks each for its device or dtype."""
    if isinstance(node, ast.GeneratorExp) and len(node.generators) == 1:
        kept = [f for f in node.generators[0].ifs if not _asks(f, {"is_floating_point", "is_complex"})]
        if not kept and _asks(node.elt, {"device", "dtype"}):
            return node.generators[0].iter
    return node


def _asks(node: ast.expr, names: set[str]) -> bool:
    node = node.func if isinstance(node, ast.Call) and not node.args and not node.keywords else node
    return isinstance(node, ast.Attribute) and node.attr in names and isinstance(node.value, ast.Name)
