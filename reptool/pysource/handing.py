"""Walks over modules: whether code runs the modules that it finds, or only looks at them.

`for m in self.modules(): n += isinstance(m, Block)` cannot give other values after fusing, whatever it reads.
`for m in self.children(): x = m(x)` can. What comes from a walk is followed through names, loops, containers and
comprehensions of one function; the function *hands on* what it found if a value that stems from a walk is called, is an
argument of a call that is not known to only look, or is kept in an attribute. Code without a text hands on.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from typing import Any

from reptool.pysource.functions import tree_of

WALKS = frozenset({"modules", "named_modules", "children", "named_children", "get_submodule", "_modules"})

_LOOKS = frozenset({
    "isinstance", "issubclass", "hasattr", "getattr", "id", "type", "len", "str", "repr", "print", "int", "float",
    "bool", "any", "all", "sum", "max", "min", "list", "tuple", "set", "dict", "frozenset", "sorted", "enumerate",
    "zip", "reversed", "iter", "next", "range", "chain",
})  # fmt: skip
_PASSES = frozenset({
    "list", "tuple", "set", "dict", "frozenset", "sorted", "enumerate", "zip", "reversed", "iter", "next", "getattr",
    "chain",
})  # fmt: skip
_KEEPS = frozenset(
    {"append", "add", "extend", "update", "insert", "setdefault", "appendleft", "remove", "discard", "index"}
)
_GIVES = frozenset({"items", "values", "get", "pop", "parameters", "named_parameters", "buffers", "__getitem__"})
_RUNS = frozenset({"forward", "__call__"})
_PLAIN = (ast.JoinedStr, ast.Compare, ast.Constant)


@functools.lru_cache(maxsize=4096)
def hands_on(function: Callable[..., Any]) -> bool:
    """Whether a function may run a module that it got from a walk, or give it to other code that does.

    Args:
        function: a method of the user's.

    Example:
        >>> import torch
        >>> class Net(torch.nn.Module):
        ...     def count(self, kind):
        ...         return sum(isinstance(m, kind) for m in self.modules())
        ...
        ...     def run(self, x):
        ...         for m in self.children():
        ...             x = m(x)
        ...         return x
        >>> hands_on(Net.count), hands_on(Net.run)
        (False, True)
    """
    tree = tree_of(function)
    if tree is None:
        return True
    known = _constants(tree)
    found = {f"getattr {n}" for n in known}  # what `getattr` reads under these names counts as read by a dot
    while True:  # names only ever join, so this ends
        before = len(found)
        for node in ast.walk(tree):
            found.update(_bound(node, found))
        if len(found) == before:
            return any(_hands(node, found) for node in ast.walk(tree))


@functools.lru_cache(maxsize=4096)
def asked_for(function: Callable[..., Any]) -> frozenset[str]:
    """The names that a function spells out in a `getattr`, which reads them as a dot does.

    Args:
        function: a method of the user's.

    Example:
        >>> def fused(self):
        ...     return getattr(self, "norm", None) is None
        >>> sorted(asked_for(fused))
        ['norm']
    """
    tree = tree_of(function)
    if tree is None:
        return frozenset()
    known = _constants(tree)
    return frozenset(name for node in ast.walk(tree) for name in _asked(node, known) or ())


def _asked(node: ast.AST, known: dict[str, set[str]]) -> set[str] | None:
    """The names that a `getattr` may read; None for anything else, and where they are not spelled out."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"):
        return None
    name = node.args[1] if len(node.args) > 1 else None
    if isinstance(name, ast.Constant) and isinstance(name.value, str):
        return {name.value}
    return known.get(name.id) if isinstance(name, ast.Name) else None


def _constants(tree: ast.AST) -> dict[str, set[str]]:
    """Names that only loops over strings set: `for name in ("cv2", "cv3")`."""
    loops: dict[str, list[set[str]]] = {}
    stored: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            stored[node.arg] = stored.get(node.arg, 0) + 1
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            stored[node.id] = stored.get(node.id, 0) + 1
        if isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.target, ast.Name):
            values = node.iter.elts if isinstance(node.iter, (ast.Tuple, ast.List)) else []
            texts = {v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)}
            if values and len(texts) == len(values):
                loops.setdefault(node.target.id, []).append(texts)
    return {n: set().union(*found) for n, found in loops.items() if stored[n] == len(found)}


def _stems(node: ast.AST | None, found: set[str]) -> bool:
    """Whether the value of an expression may hold something that a walk gave."""
    if node is None or isinstance(node, _PLAIN):
        return False
    if isinstance(node, ast.Name):
        return node.id in found
    if isinstance(node, ast.Attribute):
        return node.attr in WALKS or _stems(node.value, found)
    if isinstance(node, ast.Call):
        return _given(node, found)
    if isinstance(node, ast.Subscript):
        return _stems(node.value, found)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return False
    if isinstance(node, ast.BinOp) and _is_text(node):
        return False
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
        return _stems(node.elt, found)
    if isinstance(node, ast.DictComp):
        return _stems(node.key, found) or _stems(node.value, found)
    return any(_stems(child, found) for child in ast.iter_child_nodes(node))


def _unknown(name: ast.AST, found: set[str]) -> bool:
    """Whether the name that a `getattr` reads is not spelled out."""
    return not isinstance(name, ast.Constant) and not (isinstance(name, ast.Name) and f"getattr {name.id}" in found)


def _is_part(owner: ast.AST) -> bool:
    """Whether an expression may be a module of this one: itself, or what its attributes hold."""
    names = {n.id for n in ast.walk(owner) if isinstance(n, ast.Name)}
    return "self" in names or not isinstance(owner, ast.Name)


def _is_text(node: ast.AST) -> bool:
    """Whether an expression joins strings: a name from a walk, made longer."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _given(call: ast.Call, found: set[str]) -> bool:
    """Whether what a call gives may hold something from a walk."""
    given = [*call.args, *(k.value for k in call.keywords)]
    if isinstance(call.func, ast.Attribute):
        if call.func.attr in WALKS:
            return True
        return call.func.attr in _GIVES and _stems(call.func.value, found)
    if isinstance(call.func, ast.Name) and call.func.id in _PASSES:
        if call.func.id == "getattr" and len(given) > 1:
            return _stems(given[0], found) or (_unknown(given[1], found) and _is_part(given[0]))
        return any(_stems(a, found) for a in given)
    return False  # an argument from a walk is judged where it is handed on


def _bound(node: ast.AST, found: set[str]) -> Iterator[str]:
    """Names that get a value from a walk at one node."""
    if isinstance(node, ast.Assign) and _stems(node.value, found):
        for target in node.targets:
            yield from _targets(target)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and _stems(node.value, found):
        yield from _targets(node.target)
    elif isinstance(node, (ast.For, ast.comprehension)) and _stems(node.iter, found):
        target = node.target
        if isinstance(target, ast.Tuple) and len(target.elts) == 2 and _counts(node.iter):
            target = target.elts[1]
        yield from _targets(target)
    elif isinstance(node, ast.withitem) and node.optional_vars is not None and _stems(node.context_expr, found):
        yield from _targets(node.optional_vars)
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _KEEPS
        and any(_stems(a, found) for a in [*node.args, *(k.value for k in node.keywords)])
    ):
        yield from _targets(node.func.value)


def _counts(iterated: ast.AST) -> bool:
    """Whether what is iterated gives pairs of a name or number and a value."""
    if not isinstance(iterated, ast.Call):
        return False
    func = iterated.func
    if isinstance(func, ast.Name) and func.id in ("chain", "sorted", "list", "tuple", "reversed"):
        return bool(iterated.args) and all(map(_counts, iterated.args))
    return (isinstance(func, ast.Name) and func.id == "enumerate") or (
        isinstance(func, ast.Attribute) and (func.attr.startswith("named_") or func.attr == "items")
    )


def _targets(target: ast.AST) -> Iterator[str]:
    while isinstance(target, (ast.Subscript, ast.Starred)):
        target = target.value
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for element in target.elts:
            yield from _targets(element)


def _hands(node: ast.AST, found: set[str]) -> bool:
    """Whether one node runs something from a walk, computes with it, or hands it on."""
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.For)):
        value = node.iter if isinstance(node, ast.For) else node.value
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        kept = any(isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) for t in targets for n in ast.walk(t))
        return kept and _stems(value, found)
    if isinstance(node, ast.Match):
        return _stems(node.subject, found)
    if isinstance(node, ast.BinOp):
        return _stems(node, found)
    return isinstance(node, ast.Call) and _hands_call(node, found)


def _hands_call(call: ast.Call, found: set[str]) -> bool:
    arguments = [*call.args, *(k.value for k in call.keywords)]
    given = any(_stems(a, found) for a in arguments)
    func = call.func
    if isinstance(func, ast.Name):
        looks = func.id in _LOOKS and not any(k.arg == "key" for k in call.keywords)
        return func.id in found or (given and not looks)
    if not isinstance(func, ast.Attribute):
        return given or not isinstance(func, ast.Lambda)
    if func.attr in _KEEPS:
        return given and not isinstance(_base(func.value), ast.Name)
    if func.attr in WALKS or (func.attr in _GIVES and not given) or _is_text(func.value):
        return False
    if func.attr in _RUNS and _stems(func.value, found):
        return True
    computes = isinstance(func.value, ast.Attribute) and _stems(func.value, found)
    return given or (computes and any(not isinstance(a, ast.Constant) for a in arguments))


def _base(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Subscript):
        node = node.value
    return node
