"""Plain Python on symbolic integers: the code of a law itself is run, once for each way through it.

An `Int` holds a z3 expression. Where code asks whether a comparison holds, both answers are followed, as far as the
solver finds them possible: `paths` runs a function again for each and gives what it returned under which conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import z3


class _Run:
    """One way through a function: what was answered so far, and what follows from it."""

    def __init__(self, answers: list[bool], assumed: list[Any]) -> None:
        self.answers, self.conditions, self.asked = answers, list(assumed), 0

    def ask(self, condition: Any) -> bool:
        condition = z3.simplify(condition)
        if z3.is_true(condition) or z3.is_false(condition):
            return z3.is_true(condition)
        if self.asked == len(self.answers):
            self.answers.append(_possible([*self.conditions, condition]))
        answer = self.answers[self.asked]
        self.asked += 1
        self.conditions.append(condition if answer else z3.Not(condition))
        return answer


_RUNS: list[_Run] = []


def _possible(conditions: list[Any]) -> bool:
    solver = z3.Solver()
    solver.add(*conditions)
    return solver.check() != z3.unsat


class Bool:
    """A condition; as a truth value it is a question."""

    def __init__(self, z: Any) -> None:
        self.z = z

    def __bool__(self) -> bool:
        return _RUNS[-1].ask(self.z)


class Int:
    """An integer that is not known."""

    def __init__(self, z: Any) -> None:
        self.z = z

    def __hash__(self) -> int:
        return 0  # sets of these ask for equality

    def __repr__(self) -> str:
        return str(self.z)

    def __neg__(self) -> Int:
        return Int(-self.z)


def expression(value: Any) -> Any:
    """A number or an `Int` as z3 takes it."""
    return value.z if isinstance(value, Int) else value


def _install() -> None:
    import operator

    def binary(function: Callable[[Any, Any], Any], wrap: type) -> Callable[[Int, Any], Any]:
        return lambda self, other: wrap(function(self.z, expression(other)))

    for name in ("add", "sub", "mul"):
        function = getattr(operator, name)
        setattr(Int, f"__{name}__", binary(function, Int))
        setattr(Int, f"__r{name}__", lambda self, other, f=function: Int(f(expression(other), self.z)))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Int, f"__{name}__", binary(getattr(operator, name), Bool))
    Int.__floordiv__ = lambda self, other: Int(self.z if other == 1 else self.z / expression(other))  # type: ignore[attr-defined]


_install()


def paths(function: Callable[[], Any], assumed: list[Any]) -> Iterator[tuple[list[Any], Any]]:
    """Every way through a function: its conditions, and what it returned."""
    waiting: list[list[bool]] = [[]]
    while waiting:
        run = _Run(waiting.pop(), assumed)
        known = len(run.answers)
        _RUNS.append(run)
        try:
            found = function()
        finally:
            _RUNS.pop()
        for i in range(known, len(run.answers)):
            if run.answers[i]:  # the other answer, where it is possible too
                other = [*run.conditions[: len(assumed) + i], z3.Not(run.conditions[len(assumed) + i])]
                if _possible(other):
                    waiting.append([*run.answers[:i], False])
        if _possible(run.conditions):
            yield run.conditions, found
