"""Questions that the kind of a value answers: its dtype, its number of axes, its kind of device; not its sizes.

``x.dtype == w.dtype``, ``x.is_floating_point()``, ``x.dim() == 3``, ``len(x.shape)``, ``x.device.type == "cpu"``, and
what a cast of a value asks without words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

from reptool.ir.kinds.casts import cast_target
from reptool.ir.nodes import name_of
from reptool.ir.trace import Question, Unanswerable

_DTYPES = frozenset({"dtype", "is_floating_point", "is_complex"})
_READS = {**dict.fromkeys(_DTYPES, "dtype"), **dict.fromkeys(("dim", "ndimension", "ndim"), "rank"), "device": "device"}
OF_NUMBERS = frozenset({
    "getattr", "getitem", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "add", "sub", "mul", "floordiv",
    "mod", "contains",
})  # fmt: skip
"""Operations that work out a number, a dtype or a truth from others."""
_OTHERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Evaluate = Callable[[fx.Node], Any]
Run = Callable[[fx.Node, Any, Any], Any]
Read = tuple[fx.Node, str]
"""A value, and what is read of it: 'dtype', 'rank' or 'device'."""


def asks_kinds(question: Question) -> bool:
    """Whether a question is told by the kinds of values alone."""
    return kinds_read(question) is not None


def asked_by(cast: fx.Node, same: bool) -> Question:
    """The question that a cast of a value asks without words: whether its dtype is the one that is wanted."""
    return Question("dtype", cast.name, same, cast, bool)


def kinds_read(question: Question) -> set[Read] | None:
    """The values whose kinds alone answer a question, with what is read of each; None where more is read."""
    if question.at is None:
        return None
    of = _measured_by(question.at) if question.what == "length" else None
    return told_by(question.at) if of is None else {(of, "rank")}


def _measured_by(shape: fx.Node) -> fx.Node | None:
    """The value whose shape, or a slice of it between two numbers, this is."""
    if name_of(shape) == "getitem" and isinstance(shape.args[1], slice) and not _has_nodes(shape.args[1]):
        inner = shape.args[0]
        return _measured_by(inner) if isinstance(inner, fx.Node) else None
    whole = (shape.target is getattr and shape.args[1] == "shape") or (shape.target == "size" and len(shape.args) == 1)
    of = shape.args[0] if whole else None
    return of if isinstance(of, fx.Node) else None


def _has_nodes(key: slice) -> bool:
    return any(isinstance(v, fx.Node) for v in (key.start, key.stop, key.step))


def told_by(node: fx.Node) -> set[Read] | None:
    """The values whose kinds alone a number, dtype or truth is worked out from; None where it is from more."""
    found: set[Read] = set()
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        what = kind_read(at)
        of = at.args[0] if what else None
        if not what and (at.op == "placeholder" or name_of(at) not in OF_NUMBERS):
            return None
        for source in at.all_input_nodes:
            if source.meta["const"]:
                fresh = list(_likes(source)) if what != "rank" else []
            elif source is of:
                found.add((source, what))
                continue
            else:
                fresh = [source]
            stack += [n for n in fresh if n not in seen]
            seen.update(fresh)
    return found


def kind_read(node: fx.Node) -> str:
    """What a node tells of the kind of a tensor: 'dtype', 'rank' or 'device'; '' for everything else."""
    if cast_target(node) is not None:
        return "dtype"
    name = str(node.args[1]) if node.target is getattr else name_of(node)
    plain = node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1
    of = node.args[0] if plain and node.args else None
    tensor = isinstance(of, fx.Node) and of.meta.get("kind") in ("tensor", "unknown")
    return _READS.get(name, "") if tensor else ""


def mark_ranks(node: fx.Node) -> None:
    """Say of a new node whether it is a number that ranks alone tell, or a constant shaped by such numbers."""
    varying = [n for n in node.all_input_nodes if not n.meta["const"]]
    if kind_read(node) == "rank":
        node.meta["ranks"] = True
    elif varying and all(n.meta.get("ranks") for n in varying):
        if node.op == "call_method" and node.target in ("view", "reshape", "expand", "flatten"):
            node.meta.update(const=True, kind="tensor", ranks=True)
        elif name_of(node) in OF_NUMBERS:
            node.meta["ranks"] = True


def ranks_in(constant: fx.Node) -> Iterator[Question]:
    """The numbers that ranks tell and a constant is shaped by, as questions."""
    stack, seen = [constant], {constant}
    while stack:
        for node in stack.pop().all_input_nodes:
            if node.meta["const"] and node not in seen:
                seen.add(node)
                stack.append(node)
            elif not node.meta["const"] and node.meta.get("ranks"):
                yield Question("rank", node.name, None, node)


def _likes(constant: fx.Node) -> Iterator[fx.Node]:
    """What says of which dtype a constant is that was made like a value, or cast to it."""
    stack, seen = [constant] if constant.meta.get("cast") else [], {constant}
    while stack:
        for node in stack.pop().all_input_nodes:
            if not node.meta["const"]:
                yield from [node] if node.target is getattr and node.args[1] == "dtype" else []
            elif node.meta.get("cast") and node not in seen:
                seen.add(node)
                stack.append(node)


def follows(question: Question, dtype: torch.dtype, evaluate: Evaluate, run: Run) -> bool:
    """Whether the answer is the same where whatever has this dtype has another one.

    Args:
        question: one that `asks_kinds`, or one about constants alone.
        dtype: what everything has to have.
        evaluate: the value of a node, a fake one of what depends on data.
        run: what one node computes from other arguments.
    """
    assert question.at is not None
    if question.read is None:
        return True  # a rank is the same in every dtype
    told = _Told(dtype, evaluate, run)
    try:
        return all(question.read(told.of(question.at, other)) == question.answer for other in _OTHERS)
    except (TypeError, ValueError, RuntimeError, AttributeError, Unanswerable):
        return False


class _Told:
    """What nodes give where another dtype stands for one."""

    def __init__(self, dtype: torch.dtype, evaluate: Evaluate, run: Run) -> None:
        self.dtype, self.evaluate, self.run = dtype, evaluate, run

    def of(self, node: fx.Node, other: torch.dtype) -> Any:
        """The value of a node that tells something about dtypes."""
        target, what = cast_target(node), kind_read(node)
        if what == "dtype":
            value = self.evaluate(node.all_input_nodes[0])
            if not isinstance(value, Tensor) or value.dtype != self.dtype:
                raise ValueError("a value of another dtype")
            if target is not None:
                return (self.of(target, other) if isinstance(target, fx.Node) else target) == other
            value = torch.empty((), dtype=other)
            return value.dtype if node.target is getattr else getattr(value, name_of(node))()
        if what or node.meta.get("kind") == "size":
            return self.evaluate(node)  # the same in every dtype
        both = (fx.node.map_arg(a, lambda n: self.of(n, other)) for a in (node.args, node.kwargs))
        return self.run(node, *both)
