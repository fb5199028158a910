"""Twice: what a forward does in its second run and did not do in its first hangs on what it did before.

Code keeps state in attributes, containers, iterators, classes and globals. However it is kept, two runs of the same
code on the same symbolic inputs show it: where they differ, the code asked for its own state.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from reptool._nodes import name_of
from reptool.trace import Event, Question


def mark_state(first: Event, second: Event) -> None:
    """Write a `Question` into every event of the first run that did something else in the second.

    Args:
        first: the top event of one run.
        second: the top event of the next run of the same module on the same inputs.
    """
    mine, theirs = first.items, second.items
    same = len(mine) == len(theirs) and all(_kind(a) == _kind(b) for a, b in zip(mine, theirs, strict=False))
    if not same or _literal(first.output) != _literal(second.output):
        first.questions.append(Question("own state", first.path or "<root>", None))
    for a, b in zip(mine, theirs, strict=False):
        if isinstance(a, Event) and isinstance(b, Event) and _kind(a) == _kind(b):
            mark_state(a, b)


def _kind(item: fx.Node | Event) -> object:
    if isinstance(item, Event):
        return item.path, item.method, _literal(item.args), _literal(item.kwargs)
    target = str(item.target) if isinstance(item.target, str) else name_of(item)
    return item.op, target, _literal(item.args), _literal(item.kwargs)


def _literal(value: Any, depth: int = 0) -> object:
    """What can be compared of an argument: numbers, names and how they are nested."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return type(value), repr(value)
    if isinstance(value, fx.Node):
        return "node", "" if value.op == "get_attr" else value.name
    if depth > 4 or isinstance(value, nn.Module):
        return type(value)
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_literal(v, depth + 1) for v in value)
    if isinstance(value, dict):
        return type(value), tuple((repr(k), _literal(v, depth + 1)) for k, v in value.items())
    return type(value)
