"""Keyword arguments of unknown names (``**kwargs``): whether a method, and what is around it, only hands them on."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from torch import nn

from reptool.pysource.functions import behind, definition_of, own_definition


def that_matter(
    bad: dict[str, list[Any]], names: set[str], function: Callable[..., Any], module: nn.Module
) -> dict[str, list[Any]]:
    """Flags without ``**kwargs`` that are handed on without a look, and that no decorator makes a flag of.

    Args:
        bad: flags that may change what is run, with the values seen of each.
        names: all parameters that were given constants.
        function: the method.
        module: whose method it is.
    """
    parameters = inspect.signature(function).parameters
    loose = {f for f in bad if parameters[f].kind is inspect.Parameter.VAR_KEYWORD and not any(bad[f])}
    around = [f for f in behind(function) if f is not inspect.unwrap(function)]
    if not all(only_passed_on(function, f, module) for f in loose):
        return bad
    return {f: v for f, v in bad.items() if f not in loose or not all(adds_nothing(w, names - loose) for w in around)}


def only_passed_on(function: Callable[..., Any], name: str, module: nn.Module) -> bool:
    """Whether a method only gives its ``**name`` to calls that get no module beside it.

    What is called is a module or method then, and answers for its own arguments; a function that is given a module
    together with them may choose by them what to run.

    Args:
        function: the method, as the class holds it; what a decorator put around it is not looked at.
        name: of the variadic parameter.
        module: whose method it is.

    Example:
        >>> class Net(nn.Module):
        ...     def forward(self, x, **more):
        ...         return self.body(x, **more)
        >>> only_passed_on(Net.forward, "more", Net())
        True
    """
    tree = definition_of(function)
    if tree is None:
        return False
    first = [*tree.args.posonlyargs, *tree.args.args]
    own = first[0].arg if first else ""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    handed = {
        id(k.value): call
        for call in calls
        for k in call.keywords
        if k.arg is None and isinstance(k.value, ast.Name) and k.value.id == name
    }
    reads = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == name]
    if not all(id(n) in handed for n in reads):
        return False
    return not any(_may_be_module(a, own, module) for call in handed.values() for a in _arguments(call, handed))


def _arguments(call: ast.Call, handed: dict[int, ast.Call]) -> list[ast.expr]:
    return [*call.args, *(k.value for k in call.keywords if id(k.value) not in handed)]


def _may_be_module(node: ast.expr, own: str, module: nn.Module) -> bool:
    """Whether an argument is the module itself or something of it that is, or holds, a module."""
    if isinstance(node, ast.Name):
        return node.id == own
    if not isinstance(node, ast.Attribute):
        return any(isinstance(n, ast.Name) and n.id == own for n in ast.walk(node))
    if isinstance(node.value, ast.Name) and node.value.id == own:
        value = inspect.getattr_static(type(module), node.attr, None) if node.attr not in vars(module) else None
        found = vars(module).get(node.attr, value)
        return node.attr in module._modules or isinstance(found, (nn.Module, list, tuple, dict, property))
    return _may_be_module(node.value, own, module)


def adds_nothing(wrapper: FunctionType, names: Iterable[str]) -> bool:
    """Whether what a decorator put around a method never gives it one of `names` that it was not given itself.

    Args:
        wrapper: the decorator's inner function.
        names: parameters of the method.

    Example:
        >>> def flagged(method):
        ...     def run(self, *args, **kwargs):
        ...         kwargs["more"] = True
        ...         return method(self, *args, **kwargs)
        ...     return run
        >>> adds_nothing(flagged(None), {"more"}), adds_nothing(flagged(None), {"less"})
        (False, True)
    """
    tree, names = own_definition(wrapper), set(names)
    if tree is None:
        return False
    held = tree.args.kwarg.arg if tree.args.kwarg is not None else ""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        runs = isinstance(call.func, ast.Name) and call.func.id in wrapper.__code__.co_freevars
        if any(k.arg in names for k in call.keywords) or (runs and not _is_plain(call)):
            return False
    return all(
        _keeps(node, parents, names) for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == held
    )


def _is_plain(call: ast.Call) -> bool:
    return all(isinstance(a, ast.Name | ast.Starred) for a in call.args)


def _keeps(read: ast.Name, parents: dict[ast.AST, ast.AST], names: set[str]) -> bool:
    """Whether one use of the keyword arguments adds none of `names` to them."""
    above = parents[read]
    if isinstance(above, ast.Subscript) and above.value is read:
        known = isinstance(above.slice, ast.Constant) and above.slice.value not in names
        return isinstance(above.ctx, ast.Load) or known
    if isinstance(above, ast.Attribute):
        return above.attr in ("pop", "get", "keys", "items", "values")
    if isinstance(above, ast.Compare):
        return read in above.comparators and all(isinstance(o, ast.In | ast.NotIn) for o in above.ops)
    call = parents[above] if isinstance(above, ast.keyword) and above.arg is None else None
    return isinstance(call, ast.Call) and _is_plain(call)
