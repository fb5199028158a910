"""Straight-line code: calls of layers that run one after the other whatever the method around them decides.

A method that asks for a size may run other code for another size. Where its text shows that one layer's output goes
into the next one and nowhere else, with nothing between them but tests of the module's own attributes, and that the
layers are used nowhere else in it, the answer does not matter for these layers.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_WALKS = {"children", "named_children", "modules", "named_modules", "_modules", "get_submodule", "__dict__"}
Where = tuple[Any, int]  # a code object and the offset of the call in it


@dataclass
class _Text:
    """A method's syntax tree, what encloses each node of it, and how far the source was shifted."""

    tree: ast.FunctionDef | ast.AsyncFunctionDef
    parents: dict[ast.AST, ast.AST]
    lines: int
    columns: int
    function: Callable[..., Any]

    @property
    def own(self) -> str:
        """The name of the first parameter."""
        first = [*self.tree.args.posonlyargs, *self.tree.args.args]
        return first[0].arg if first else ""

    def attribute(self, node: ast.AST) -> str:
        """The attribute of the module itself that `node` reads, '' for everything else."""
        direct = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.own
        return node.attr if direct else ""  # type: ignore[attr-defined]

    def calls(self) -> Iterator[ast.Call]:
        """Every call in the method."""
        return (n for n in ast.walk(self.tree) if isinstance(n, ast.Call))


def straight(function: Callable[..., Any], calls: list[Where], modules: Iterable[str] | None = None) -> bool:
    """Whether `calls`, one after the other in `function`, always run together.

    Args:
        function: the method, as the class holds it.
        calls: where each layer is called, in the order in which they run.
        modules: names under which the module holds others; what is called must be among them, if given.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    text = _parsed(function) if code is not None and hasattr(code, "co_positions") else None
    if text is None or any(where[0] is not code for where in calls):
        return False
    offsets = [offset for _, offset in calls]
    if sorted(set(offsets)) != offsets:
        return False
    found = [_call_at(text, offset) for offset in offsets]
    called = [_called(text, call) if call is not None else ("", "") for call in found]
    names = [name for name, _ in called]
    if not all(names) or len(set(names)) != len(names) or len({index for _, index in called}) != 1:
        return False
    if modules is not None and not set(names) <= set(modules):
        return False
    nodes = [call for call in found if call is not None]
    if any(len(call.args) != 1 or call.keywords for call in nodes):
        return False
    if not all(_follows(text, a, b) for a, b in itertools.pairwise(nodes)):
        return False
    return all(_used_once(text, name, call) for name, call in zip(names, nodes, strict=True)) and not _walks(text)


@functools.lru_cache(maxsize=1024)
def _parsed(function: Callable[..., Any]) -> _Text | None:
    try:
        lines, first = inspect.getsourcelines(function)
        source = "".join(lines)
        dedented = textwrap.dedent(source)
        tree = ast.parse(dedented).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    columns = len(source.split("\n", 1)[0]) - len(dedented.split("\n", 1)[0])
    return _Text(tree, parents, first - 1, columns, function)


def _call_at(text: _Text, offset: int) -> ast.Call | None:
    """The call that the instruction at `offset` makes."""
    positions = list(text.function.__code__.co_positions())  # type: ignore[attr-defined]
    line, last, column, end = positions[offset // 2]
    if None in (line, last, column, end):
        return None
    for call in text.calls():
        here = (call.lineno + text.lines, call.end_lineno, call.col_offset + text.columns, call.end_col_offset)
        if here == (line, last - text.lines, column, end - text.columns):
            return call
    return None


def _called(text: _Text, call: ast.Call) -> tuple[str, str]:
    """The attribute a call runs, and the variable of the loop around that tells which of its elements, if any."""
    func = call.func
    if not (isinstance(func, ast.Subscript) and isinstance(func.slice, ast.Name)):
        return text.attribute(func), ""
    index = func.slice.id
    stored = [
        n for n in ast.walk(text.tree) if isinstance(n, ast.Name) and n.id == index and isinstance(n.ctx, ast.Store)
    ]
    loops = [n for n in ast.walk(text.tree) if isinstance(n, ast.For) and n.target in stored]
    inside = len(loops) == len(stored) == 1 and any(n is call for s in loops[0].body for n in ast.walk(s))
    return (text.attribute(func.value), index) if inside else ("", "")


def _statement(text: _Text, node: ast.AST) -> ast.stmt:
    while not isinstance(node, ast.stmt):
        node = text.parents[node]
    return node


def _follows(text: _Text, first: ast.Call, second: ast.Call) -> bool:
    """Whether the output of `first` goes into `second` at once, and nowhere else."""
    given = second.args[0]
    if given is first:
        return True
    one, two = _statement(text, first), _statement(text, second)
    if not (isinstance(one, ast.Assign) and one.value is first and len(one.targets) == 1 and _plain(text, second, two)):
        return False
    target = one.targets[0]
    if not _place(target) or _place(target) != _place(given):
        return False
    block = _block(text, one)
    at = next((i for i, s in enumerate(block) if s is one), None)
    follower: ast.AST = two
    while at is not None and not any(s is follower for s in block):
        above = text.parents[follower]
        if not (isinstance(above, ast.If) and above.body[0] is follower and _own_test(text, above.test)):
            return False
        follower = above
    if at is None or at + 1 >= len(block) or block[at + 1] is not follower:
        return False
    name = _place(target)[0]
    rebound = isinstance(two, ast.Assign) and len(two.targets) == 1 and _place(two.targets[0]) == _place(target)
    if isinstance(target, ast.Subscript) and not rebound:
        return False  # who has the list sees the value between
    read = [n for n in ast.walk(text.tree) if isinstance(n, ast.Name) and n.id == name and _is_read(text, n)]
    inside = [n for n in ast.walk(two) if n in read]
    return len(inside) == 1 and (rebound or isinstance(two, ast.Return) or len(read) == 1)


def _plain(text: _Text, call: ast.AST, statement: ast.stmt) -> bool:
    """Whether a call is made whenever its statement runs."""
    node = call
    while node is not statement:
        above = text.parents[node]
        if isinstance(above, (ast.IfExp, ast.BoolOp, ast.Lambda, ast.comprehension, ast.ListComp, ast.GeneratorExp)):
            return False
        if isinstance(above, (ast.If, ast.While, ast.For)):
            return False
        node = above
    return isinstance(statement, (ast.Assign, ast.Return, ast.Expr))


def _block(text: _Text, statement: ast.stmt) -> list[ast.stmt]:
    above = text.parents[statement]
    for name in ("body", "orelse", "finalbody"):
        block = getattr(above, name, None)
        if isinstance(block, list) and any(s is statement for s in block):
            return block
    return []


def _is_read(text: _Text, name: ast.Name) -> bool:
    """Whether a variable is read, and not only an element of it set."""
    above = text.parents[name]
    sets = isinstance(above, ast.Subscript) and above.value is name and isinstance(above.ctx, ast.Store)
    return isinstance(name.ctx, ast.Load) and not sets


def _place(target: ast.AST) -> tuple[str, ...]:
    """A variable, or a variable and the variable that tells which of its elements."""
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name) and isinstance(target.slice, ast.Name):
        return target.value.id, target.slice.id
    return ()


def _own_test(text: _Text, test: ast.AST) -> bool:
    """Whether a test reads nothing but the module's attributes and constants."""
    allowed = (
        ast.Attribute, ast.Constant, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.boolop, ast.unaryop, ast.cmpop,
        ast.expr_context,
    )  # fmt: skip
    return all(isinstance(n, allowed) or (isinstance(n, ast.Name) and n.id == text.own) for n in ast.walk(test))


def _used_once(text: _Text, name: str, call: ast.Call) -> bool:
    """Whether a layer is called by `call` alone; tests and functions that only read its attributes do not matter."""
    for node in ast.walk(text.tree):
        if text.attribute(node) != name or node is call.func or text.parents[node] is call.func:
            continue
        above: ast.AST = text.parents[node]
        if isinstance(above, ast.Call) and node in above.args and _reads_only(text, above, above.args.index(node)):
            continue
        while isinstance(above, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            above = text.parents[above]
        if not (isinstance(above, ast.If) and _own_test(text, above.test)):
            return False
    return True


def _reads_only(text: _Text, call: ast.Call, index: int) -> bool:
    """Whether a plain function does nothing with an argument but read its attributes."""
    if not isinstance(call.func, ast.Name) or any(isinstance(a, ast.Starred) for a in call.args):
        return False
    function = getattr(text.function, "__globals__", {}).get(call.func.id)
    inner = _parsed(function) if inspect.isfunction(function) else None
    if inner is None:
        return False
    parameters = [*inner.tree.args.posonlyargs, *inner.tree.args.args]
    if index >= len(parameters):
        return False
    for node in ast.walk(inner.tree):
        if isinstance(node, ast.Name) and node.id == parameters[index].arg:
            above = inner.parents[node]
            called = isinstance(inner.parents.get(above), ast.Call) and inner.parents[above].func is above  # type: ignore[attr-defined]
            if not isinstance(above, ast.Attribute) or called or above.attr in _WALKS:
                return False
    return True


def _walks(text: _Text) -> bool:
    """Whether the method may reach its layers by other means than their names."""
    for node in ast.walk(text.tree):
        if isinstance(node, ast.Name) and node.id in ("getattr", "vars", "super"):
            return True
        if isinstance(node, ast.Attribute) and node.attr in _WALKS:
            return True
        if isinstance(node, ast.Name) and node.id == text.own and not isinstance(text.parents[node], ast.Attribute):
            return True
    return False
