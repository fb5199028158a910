"""Elements of a container of modules: whether a method does anything with them but call them.

``for layer in self.layers: x = layer(x)`` runs each layer as a whole, so what is inside of one may change;
``for layer in self.layers: x = layer[0](x)`` does not. The text of the method decides.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from reptool.pysource.functions import own_definition

_HANDED_OUT: dict[str, tuple[int, ...]] = {"values": (), "items": (1,)}


def only_called(function: Callable[..., Any], name: str) -> bool:
    """Whether a method calls the elements of ``self.<name>`` and does nothing else with them.

    Args:
        function: the method, or what a decorator put in its place (what that hands to the method is the method's).
        name: an attribute that holds a container of modules.
    """
    tree = own_definition(function)
    if tree is None:
        return False
    first = [*tree.args.posonlyargs, *tree.args.args]
    own = first[0].arg if first else ""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    bound: set[str] = set()
    for node in ast.walk(tree):
        alone = isinstance(node, ast.Name) and node.id == own and not isinstance(parents[node], ast.Attribute)
        if alone and not hasattr(function, "__wrapped__"):
            return False  # the module itself is handed on
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == own:
            found = _bound(node, parents) if node.attr == name else set()
            if found is None:
                return False
            bound |= found
    return all(_is_called(n, parents) for n in _reads(tree, bound))


def _bound(node: ast.expr, parents: dict[ast.AST, ast.AST], at: tuple[int, ...] = ()) -> set[str] | None:
    """The name that one read of a container gives to its elements, at `at` of a loop's target; None for other uses."""
    above = parents[node]
    if isinstance(above, ast.Subscript) and above.value is node:
        return set() if not at and not isinstance(above.slice, ast.Slice) and _is_called(above, parents) else None
    if isinstance(above, ast.Attribute) and above.attr in _HANDED_OUT:
        call = parents[above]
        plain = isinstance(call, ast.Call) and call.func is above
        return _bound(call, parents, _HANDED_OUT[above.attr] + at) if plain else None  # type: ignore[arg-type]
    if isinstance(above, ast.Call) and node in above.args and isinstance(above.func, ast.Name):
        if above.func.id == "len":
            return set()
        place = {"enumerate": (1,), "reversed": (), "zip": (above.args.index(node),)}.get(above.func.id)
        return None if place is None else _bound(above, parents, place + at)
    if isinstance(above, ast.For | ast.comprehension) and above.iter is node:
        return _named(above.target, at)
    return None


def _named(target: ast.expr, at: tuple[int, ...]) -> set[str] | None:
    for i in at:
        if not isinstance(target, ast.Tuple) or any(isinstance(e, ast.Starred) for e in target.elts):
            return None
        target = target.elts[i]
    return {target.id} if isinstance(target, ast.Name) else None


def _is_called(node: ast.expr, parents: dict[ast.AST, ast.AST]) -> bool:
    above = parents[node]
    return isinstance(above, ast.Call) and above.func is node


def _reads(tree: ast.AST, names: set[str]) -> Iterator[ast.Name]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in names and isinstance(n.ctx, ast.Load))
