"""Replay check: where two runs of a forward on the same symbolic inputs differ, it depends on state of its own.

Code keeps state in attributes, containers, iterators, classes and globals; two runs show it however it is kept.
Constants are compared by value, so caching a constant between calls does not count as mutable state.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.nodes import name_of
from reptool.ir.trace import Event, Question, Trace, all_events
from reptool.runtime.containers import parts

_NAMES = re.compile(r"Value\(\w+\)")
"""A symbolic value printed into a message: the name of its node says nothing."""


def mark_state(first: Trace, second: Trace) -> None:
    """Write a `Question` into every event of the first run that did something else in the second.

    Args:
        first: one run.
        second: the next run of the same module on the same inputs.
    """
    _Twins(first, second).compare(first.top, second.top)


class _Twins:
    """Which node of the second run stands for which of the first."""

    def __init__(self, first: Trace, second: Trace) -> None:
        self.tensors = first.constants, second.constants
        self.twin: dict[fx.Node, fx.Node] = {}
        self.same: dict[tuple[fx.Node, fx.Node], bool] = {}  # constants that were compared
        self.settled: set[fx.Node] = set()  # constants, also those that the first run made and kept, and what they tell
        for node in (*first.graph.nodes, *second.graph.nodes):
            kept, made = node.meta.get("kept"), node.op not in ("placeholder", "get_attr", "output")
            if (
                node.meta["const"]
                or (kept is not None and kept.meta["const"])
                or (made and node.all_input_nodes and all(n in self.settled for n in node.all_input_nodes))
            ):
                self.settled.add(node)
        inputs = [[n for n in t.graph.nodes if n.op == "placeholder"] for t in (first, second)]
        self.twin.update(zip(*inputs, strict=False))

    def compare(self, first: Event, second: Event) -> None:
        """Pair what two calls did; a call that did something else gets its question."""
        mine, theirs = self._done(first), self._done(second)
        same = len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=False):
            if isinstance(a, fx.Node) and isinstance(b, fx.Node):
                self.twin[a] = b
                same = same and self._alike_nodes(a, b)
            elif isinstance(a, Event) and isinstance(b, Event) and (a.path, a.method) == (b.path, b.method):
                same = same and self._alike(a.args, b.args) and self._alike(a.kwargs, b.kwargs)
                self.compare(a, b)
            elif isinstance(a, Event) and isinstance(b, fx.Node) and b.op == "call_module" and str(b.target) == a.path:
                same = same and self._failed(a, b)
            else:
                same = False
        if not same or not self._alike(first.output, second.output):
            first.questions.append(_own_state(first))

    def _done(self, event: Event) -> list[fx.Node | Event]:
        """What a call did; constants count where they are used."""
        return [i for i in event.items if not self.settled.issuperset(i.nodes() if isinstance(i, Event) else [i])]

    def _failed(self, call: Event, leaf: fx.Node) -> bool:
        """A call that could be followed once, and in the next run tripped over what it had left behind."""
        for event in all_events(call):
            event.questions.append(_own_state(event))
        if isinstance(call.output, fx.Node):
            self.twin[call.output] = leaf
        return self._alike(call.args, leaf.args) and self._alike(call.kwargs, dict(leaf.kwargs))

    def _alike_nodes(self, a: fx.Node, b: fx.Node) -> bool:
        same = a.op == b.op and _target(a) == _target(b)
        return same and self._alike(a.args, b.args) and self._alike(a.kwargs, b.kwargs)

    def _alike(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Whether two arguments are the same: numbers, names, nodes and how they are nested."""
        if isinstance(a, fx.Node) or isinstance(b, fx.Node):
            if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
                return False
            return self._constants(a, b) if a in self.settled and b in self.settled else self.twin.get(a) is b
        if type(a) is not type(b):
            return False
        if isinstance(a, (bool, int, float, str)) or a is None:
            return _NAMES.sub("", repr(a)) == _NAMES.sub("", repr(b))
        if depth > 4 or isinstance(a, nn.Module):
            return True
        if not isinstance(a, (list, tuple, dict)):
            return True
        left, right = parts(a) or [], parts(b) or []
        same = [repr(step) for step, _ in left] == [repr(step) for step, _ in right]
        return same and all(self._alike(x, y, depth + 1) for (_, x), (_, y) in zip(left, right, strict=True))

    def _constants(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two constants are one: the same node, kept from the first run, or made alike."""
        if a is b or b.meta.get("kept") is a:
            return True
        if (a, b) not in self.same:
            if a.op == b.op == "get_attr":
                left, right = (c.get(str(n.target)) for c, n in zip(self.tensors, (a, b), strict=True))
                self.same[a, b] = a.target == b.target if left is None or right is None else _equal(left, right)
            else:
                self.same[a, b] = self._alike_nodes(a, b)
        return self.same[a, b]


def _own_state(event: Event) -> Question:
    return Question("own state", event.path or "<root>", None)


def _target(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else name_of(node)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or a.is_meta or b.is_meta:
        return a.shape == b.shape and a.dtype == b.dtype
    return torch.equal(a.nan_to_num(), b.nan_to_num())
