"""What the text of a function asks about modules: of what kind they are, what they have, what is in them.

A layer in the place of a wrapper answers other questions otherwise than by an error: `isinstance`, `hasattr`, and who
its children are. Every other use of a wrapper (its attributes, its methods, its items) raises by itself.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from reptool.pysource.functions import codes_in, tree_of
from reptool.pysource.module_info import catches

_LISTS = frozenset(["children", "named_children", "_modules", "modules", "named_modules"])
_BY_NAME = frozenset(["named_modules"])


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        kind: ``"isinstance"``, ``"has"``, or ``"other"``, which every wrapper may answer otherwise.
        text: as it is written.
        about: the classes that are asked for, or the name of the attribute.
        listed: whether it is asked of each of the modules of a model, among which the layer is before and after.
    """

    kind: str
    text: str
    about: tuple[Any, ...] = ()
    listed: bool = False

    def differs(self, wrapper: Any, layer: Any, was: type) -> bool:
        """Whether a wrapper answers otherwise than the layer.

        Args:
            wrapper: the module that goes.
            layer: the one in its place.
            was: the class of the wrapper as the user wrote it.
        """
        if self.kind == "other":
            return True
        if self.kind == "has":
            answers = [hasattr(m, str(self.about[0])) for m in (wrapper, layer)]
        else:
            answers = [self._is_one(cls) for cls in (was, type(layer))]
        return answers[0] and not answers[1] if self.listed else answers[0] != answers[1]

    def _is_one(self, cls: type) -> bool:
        names = {c.__name__ for c in cls.__mro__}
        return any(issubclass(cls, k) if isinstance(k, type) else k in names for k in self.about)


@functools.lru_cache(maxsize=4096)
def questions(function: FunctionType) -> tuple[Question, ...]:
    """The questions in a function's text; a single ``other`` where there is no text.

    Args:
        function: a plain function.
    """
    tree = tree_of(function)
    if tree is None:
        return (Question("other", "its source is not there"),)
    caught = [Question("other", "it catches errors")] if any(map(catches, codes_in(function.__code__))) else []
    return (*caught, *_Reading(function, tree).found())


class _Reading:
    """One function's text.

    Args:
        function: whose globals the names mean.
        tree: its text.
    """

    def __init__(self, function: FunctionType, tree: ast.Module) -> None:
        self.function, self.tree = function, tree
        code = function.__code__
        self.own = code.co_varnames[0] if code.co_argcount else ""
        self.listed = set(self._listed())

    def _listed(self) -> Iterator[str]:
        """Names that stand for each module of a model in turn."""
        for node in ast.walk(self.tree):
            if not isinstance(node, (ast.For, ast.comprehension)):
                continue
            called = node.iter.func if isinstance(node.iter, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("modules", "named_modules"):
                yield from (n.id for n in ast.walk(node.target) if isinstance(n, ast.Name))

    def found(self) -> Iterator[Question]:
        """The questions, in the order of the tree."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                yield from self._call(node, node.func.id)
            elif isinstance(node, ast.Attribute) and not self._is_own(node.value):
                if node.attr in (*_LISTS, "__class__", "__dict__"):
                    yield self._other(node)
            elif (isinstance(node, ast.Attribute) and node.attr in _BY_NAME) or isinstance(node, ast.Match):
                yield self._other(node)

    def _call(self, node: ast.Call, name: str) -> Iterator[Question]:
        subject = node.args[0] if node.args else None
        if subject is None or self._is_own(subject):
            return
        listed = isinstance(subject, ast.Name) and subject.id in self.listed
        if name in ("isinstance", "issubclass") and len(node.args) > 1:
            kinds = tuple(self._kinds(node.args[1]))
            yield Question("isinstance", ast.unparse(node), kinds, listed) if kinds else self._other(node)
        elif name in ("getattr", "hasattr") and len(node.args) > 1:
            told = node.args[1]
            known = isinstance(told, ast.Constant) and isinstance(told.value, str)
            yield Question("has", ast.unparse(node), (told.value,), listed) if known else self._other(node)  # type: ignore[attr-defined]
        elif name in ("type", "vars", "dir", "id"):
            yield self._other(node)

    def _kinds(self, node: ast.expr) -> Iterator[Any]:
        """The classes that an expression names, one that is not known by its name; nothing for other expressions."""
        if isinstance(node, (ast.Tuple, ast.BinOp)):
            parts = node.elts if isinstance(node, ast.Tuple) else [node.left, node.right]
            each = [tuple(self._kinds(p)) for p in parts]
            yield from (k for kinds in each if all(each) for k in kinds)
            return
        value = self._value(node)
        values = value if isinstance(value, tuple) else (value,)
        if all(isinstance(v, type) for v in values):
            yield from values
        elif isinstance(node, ast.Name) and node.id not in self.function.__code__.co_varnames[: self._arguments()]:
            yield node.id

    def _arguments(self) -> int:
        code = self.function.__code__
        return code.co_argcount + code.co_kwonlyargcount

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.function.__globals__.get(node.id, getattr(_builtins(self.function), node.id, None))
        if isinstance(node, ast.Attribute):
            return getattr(self._value(node.value), node.attr, None)
        return None

    def _is_own(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self.own

    def _other(self, node: ast.AST) -> Question:
        return Question("other", ast.unparse(node))


def _builtins(function: Callable[..., Any]) -> Any:
    held = function.__globals__.get("__builtins__", {})
    return held if not isinstance(held, dict) else type("builtins", (), held)
