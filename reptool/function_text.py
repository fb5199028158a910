"""The text of a function as a syntax tree, read once."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any


@functools.lru_cache(maxsize=4096)
def tree_of(function: Callable[..., Any]) -> ast.Module | None:
    """The syntax tree of a function's source, None where it has none.

    >>> tree_of(len) is None
    True
    """
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None


def definition_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The ``def`` of a plain function behind its decorators, None for everything else.

    >>> definition_of(inspect.getsource).name
    'getsource'
    """
    tree = tree_of(inspect.unwrap(function))
    first = tree.body[0] if tree is not None and tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None
