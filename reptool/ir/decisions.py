"""Decisions: what planning read off the values of weights, so that the same plan can be made without them.

A plan depends on the values of weights in a few places only: a bias that has to be zero in front of a padding, a scale
that must not be negative, an activation whose slopes are one. Each of them is a question with a name that does not
change from one process to the next: the traced module, the operations it is about, what is asked. `deploy` remembers
the answers; whoever makes the plan again from a recipe gives them, and then no value is looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import fx

T = TypeVar("T")


class Decisions:
    """The answers of one plan.

    Args:
        given: the answers of an earlier one, which stand; None where they are found out and remembered.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        self.given = given
        self.found: dict[str, Any] = {}
        self.prefix = ""

    def answer(self, question: str, nodes: Iterable[fx.Node], find: Callable[[], T], blind: T) -> T:
        """The answer to one question; see `decided`."""
        key = f"{self.prefix}|{question}|{_signature(nodes)}"
        if self.given is not None:
            found: T = self.given.get(key, blind)
            return found
        answer = find()
        if answer != blind:
            self.found[key] = answer
        return answer


_NOW: ContextVar[Decisions | None] = ContextVar("decisions", default=None)


@contextmanager
def deciding(decisions: Decisions) -> Iterator[Decisions]:
    """While this is open, `decided` asks and tells these."""
    token = _NOW.set(decisions)
    try:
        yield decisions
    finally:
        _NOW.reset(token)


def decide_for(prefix: str) -> None:
    """Say which traced module the questions are about from now on."""
    now = _NOW.get()
    if now is not None:
        now.prefix = prefix


def decided(question: str, nodes: Iterable[fx.Node], find: Callable[[], T], blind: T) -> T:
    """The answer to a question about values.

    Args:
        question: what is asked.
        nodes: the operations that it is about.
        find: looks at the values.
        blind: the answer where there are none; it need not be remembered.

    >>> node = fx.Graph().placeholder("x")
    >>> with deciding(Decisions()) as first:
    ...     decided("is zero", [node], lambda: True, False)
    True
    >>> with deciding(Decisions(first.found)):
    ...     decided("is zero", [node], lambda: False, False), decided("is one", [node], lambda: True, False)
    (True, False)
    """
    now = _NOW.get()
    return find() if now is None else now.answer(question, nodes, find, blind)


def _signature(nodes: Iterable[fx.Node]) -> str:
    """Nodes by their names and what they do, whatever the order."""
    return hashlib.sha256("\n".join(sorted(map(described, nodes))).encode("utf-8", "surrogatepass")).hexdigest()[:20]


def described(node: fx.Node) -> str:
    """A node in words that are the same in every process."""
    target = node.target
    if not isinstance(target, str):
        target = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', type(target).__name__)}"
    return f"{node.name} {node.op} {target}"
