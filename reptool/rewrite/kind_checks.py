"""Kinds that were asked for: a method whose code decided by the dtype, rank or device of an argument checks it.

``x if x.dtype == self.weight.dtype else x.to(self.weight.dtype)`` runs other code for another dtype, and the same code
for all sizes: what was asked is told by the kinds of the arguments alone. Where the answer is the same once model and
input are brought to another dtype together, the check follows the model: its first parameter says what the dtype is.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from reptool.capture.graph_builder import Writing
from reptool.ir.kinds.asked import follows, kinds_read
from reptool.ir.trace import Event, Question, Setting
from reptool.pysource.globals_read import Outside
from reptool.pysource.places import asked, named
from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.method_source import Check


@dataclass(frozen=True)
class KindOf:
    """A tensor whose kind decided something.

    Args:
        name: of the parameter that is given it, or of the attribute that holds it.
        what: 'dtype', 'rank' or 'device'.
        value: what it was.
        follows: whether the dtype was that of the module, and any other one of both would have decided the same.
        read: the expression for an attribute; '' for an argument.
    """

    name: str
    what: str
    value: Any
    follows: bool = False
    read: str = ""


class KindCheck(Check):
    """That a tensor is of the kind which decided something.

    Args:
        asked: which tensor it is, and what of it was asked.
    """

    def __init__(self, asked: KindOf) -> None:
        read, argument = (asked.read, None) if asked.read else (asked.name, asked.name)
        super().__init__(f"the {asked.what} of {asked.name}", read, (asked,), exact=True, argument=argument)
        self.asked = asked

    def text(self, constants: Constants) -> str:
        """The statement that checks it."""
        read = self.read if isinstance(self.read, str) else self.read(constants)
        owner = "self" if self.asked.follows else "None"
        seen = constants.text(self.asked.value, read)
        return f"_expect_kind({self.asked.name!r}, {read}, {self.asked.what!r}, {seen}, {owner})"

    def scripted(self) -> None:
        """A script is made for the kinds that it is traced with."""


def kinds_asked(event: Event, questions: Iterable[Question], recorder: Writing) -> list[KindOf]:
    """The arguments of a call whose kinds decide about questions asked in it.

    Args:
        event: the call.
        questions: those that kinds alone answer.
        recorder: what traced it.

    Raises:
        CannotCutError: one is decided by something that is no argument of the call.
    """
    asked_in_it = list(questions)
    entry: dict[tuple[fx.Node, str], None] = {}
    for question in asked_in_it:
        for value, what in sorted(kinds_read(question) or (), key=str):
            entry |= {(node, what): None for node in _entries(value, event, question)}
    own = {t.dtype for t in event.module.parameters() if t.is_floating_point()}
    found: list[KindOf] = []
    for node, what in entry:
        value, name = recorder.evaluate(node), _parameter(node, event)
        seen = {"dtype": value.dtype, "rank": value.dim(), "device": value.device.type}[what]
        same = what == "dtype" and own == {seen}
        same = same and all(follows(q, seen, recorder.evaluate, recorder.known.run) for q in asked_in_it)
        found.append(KindOf(name, what, seen, same))
    return found


def _entries(value: fx.Node, event: Event, question: Question) -> Iterator[fx.Node]:
    """The arguments of a call that a value is computed from."""
    own = {v for v in (*event.args, *event.kwargs.values()) if isinstance(v, fx.Node)}
    stack, seen = [value], {value}
    while stack:
        node = stack.pop()
        if node in own:
            yield node
        elif node.op == "placeholder":
            raise CannotCutError(f"it asks for {asked(question)}, which {named(node)} tells: that is no argument of it")
        else:
            fresh = [n for n in node.all_input_nodes if not n.meta["const"] and n not in seen]
            seen.update(fresh)
            stack += fresh


def _parameter(node: fx.Node, event: Event) -> str:
    """The name under which a method gets an argument."""
    function = getattr(type(event.module), event.method)
    bound = inspect.signature(function).bind(event.module, *event.args, **event.kwargs)
    name = next((n for n, v in bound.arguments.items() if v is node), None)
    if name is None:
        raise CannotCutError(f"it asks of what kind {named(node)} is, which it is not given under a name")
    return name


def is_fixed(asked: Setting | Outside | KindOf) -> bool:
    """Whether this holds for the dtypes that were shown alone."""
    if isinstance(asked, KindOf):
        return asked.what == "dtype" and not asked.follows
    return isinstance(asked, Setting) and asked.name.endswith(".dtype") and not asked.follows
