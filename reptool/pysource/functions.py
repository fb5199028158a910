"""The text of a function as a syntax tree, read once."""

from __future__ import annotations

import ast
import contextlib
import dis
import functools
import inspect
import textwrap
from collections.abc import Callable, Hashable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any


@functools.lru_cache(maxsize=4096)
def behind(function: Callable[..., Any]) -> tuple[FunctionType, ...]:
    """A function and all that it wraps or closes over: a decorated method runs more code than its own.

    Args:
        function: a method, as the class holds it.

    Returns:
        The function first; nothing for what is no Python function.

    >>> def doubled(function):
    ...     @functools.wraps(function)
    ...     def run(*args):
    ...         return function(*args) * 2
    ...     return run
    >>> [f.__code__.co_name for f in behind(doubled(lambda x: x))]
    ['run', '<lambda>']
    """
    found: dict[int, FunctionType] = {}
    queue: list[Any] = [function]
    while queue:
        value = queue.pop(0)
        if isinstance(value, functools.partial):
            queue += [value.func, *value.args, *value.keywords.values()]
        if isinstance(value, MethodType):
            queue.append(value.__func__)
        queue += [vars(value)["__wrapped__"]] if "__wrapped__" in getattr(value, "__dict__", {}) else []
        if not isinstance(value, FunctionType) or id(value) in found:
            continue
        found[id(value)] = value
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # nothing is in it yet
                queue.append(cell.cell_contents)
    return tuple(found.values())


def run_by(member: Any) -> tuple[FunctionType, ...]:
    """The functions that run where a member of a class is called or read, with what they wrap; none for data.

    >>> run_by(property(lambda self: 1))[0].__code__.co_varnames, run_by([1, 2])
    (('self',), ())
    """
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return behind(function) if callable(function) and isinstance(function, Hashable) else ()


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of the functions inside of it."""
    yield code
    for const in code.co_consts:
        if inspect.iscode(const):
            yield from codes_in(const)


@functools.lru_cache(maxsize=4096)
def loaded_by(code: CodeType) -> frozenset[str]:
    """Names that code loads: variables, attributes, globals; not those in functions inside of it.

    >>> sorted(loaded_by((lambda x: len(x.shape)).__code__))
    ['len', 'shape', 'x']
    """
    found = (i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_"))
    names = (n for v in found for n in (v if isinstance(v, tuple) else (v,)))
    return frozenset(n for n in names if isinstance(n, str))


@functools.lru_cache(maxsize=4096)
def tree_of(function: Callable[..., Any]) -> ast.Module | None:
    """The syntax tree of a function's own source, not of what it wraps; None where it has none.

    >>> tree_of(len) is None
    True
    """
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(getattr(function, "__code__", function))))
    except (OSError, TypeError, SyntaxError):
        return None


def definition_of(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The ``def`` of a plain function behind its decorators, None for everything else.

    >>> definition_of(inspect.getsource).name
    'getsource'
    """
    return own_definition(inspect.unwrap(function))


def own_definition(function: Callable[..., Any]) -> ast.FunctionDef | None:
    """The ``def`` of a plain function, that of the decorator's inner function where it is decorated."""
    tree = tree_of(function)
    first = tree.body[0] if tree is not None and tree.body else None
    return first if isinstance(first, ast.FunctionDef) else None


def function_of(cls: type, name: str) -> Callable[..., Any]:
    """The function that a class runs under a name: a method, or what a property is read with."""
    found = getattr(cls, name)
    return found.fget if isinstance(found, property) and found.fget is not None else found
