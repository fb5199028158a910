"""`Trace`: one run on symbolic values, as a graph, a tree of calls, and in each call what the code asked and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from reptool.errors import ReptoolError
from reptool.runtime.containers import Leaf


class CaptureLimitError(ReptoolError):
    """The model's forward does not end within the limits of tracing."""


class Unanswerable(Exception):
    """The code asked something about a value that is not known while tracing."""


VALUE = "value"
"""What is asked of a parameter or buffer whose numbers decide what the code does."""


@dataclass
class Question:
    """Something a forward asked about a value, and what it was told."""

    what: str
    node: str
    answer: object
    at: fx.Node | None = None
    read: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Setting:
    """A value that is no data and that code read: an attribute of a module.

    Args:
        path: of the module.
        name: of the attribute.
        value: a snapshot of what it was.
        time: when it was read, in operations and settings that were read.
        by_torch: whether it was torch's own code that read it, on behalf of a class derived from one of torch's.
        kind: the class of the module, where the module itself does not hold it.
        of_class: whether it is read of that class, since the module is gone.
        follows: of the dtype of a tensor, whether any other dtype of the whole model would have decided the same.
    """

    path: str
    name: str
    value: Any
    time: int
    by_torch: bool = False
    kind: type | None = None
    of_class: bool = False
    follows: bool = False

    def __str__(self) -> str:
        if self.of_class and self.kind is not None:
            return f"{self.kind.__qualname__}.{self.name}"
        return ".".join(p for p in (self.path, self.name) if p)


@dataclass(eq=False)
class Event:
    """One call of a module, or of one of a module's own methods."""

    module: nn.Module
    path: str
    method: str
    parent: Event | None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    items: list[fx.Node | Event] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)  # what it read that is no data
    effects: list[str] = field(default_factory=list)  # what its code does beside returning a value
    peeked: set[str] = field(default_factory=set)  # other modules whose parameters or kind its code asks for
    lacking: set[str] = field(default_factory=set)  # other modules that it asks for a parameter they do not have
    valued: set[str] = field(default_factory=set)  # tensors whose numbers its code asks for as numbers of Python
    between: set[tuple[str, str]] = field(default_factory=set)  # class and name of methods that lead to calls in it
    hooked: bool = False
    node: fx.Node | None = None  # for a leaf
    where: tuple[Any, int] | None = None  # the code that made the call, and the offset of the call in it
    decides: bool = False  # whether its questions were tried with other answers, and decided something
    prefix: str = ""  # of the outermost call: where in the whole model its module is

    @property
    def place(self) -> str:
        """The path of the module in the whole model."""
        *_, top = self.ancestors()
        return ".".join(p for p in (top.prefix, self.path) if p) or "<root>"

    @property
    def function(self) -> str:
        """Module and method, as messages name them."""
        return f"{self.place}.{self.method}"

    def ancestors(self) -> Iterator[Event]:
        """This event and all that enclose it, innermost first."""
        event: Event | None = self
        while event is not None:
            yield event
            event = event.parent

    def nodes(self) -> Iterator[fx.Node]:
        """Every node made during this call, in order."""
        for item in self.items:
            if isinstance(item, Event):
                yield from item.nodes()
            else:
                yield item

    def __repr__(self) -> str:
        return f"Event({self.path or '<root>'}.{self.method})"


@dataclass
class Trace:
    """What was seen of one root module."""

    root: nn.Module
    prefix: str
    graph: fx.Graph
    top: Event
    outputs: list[fx.Node]
    escaped: set[fx.Node]
    opaque: dict[str, str]
    constants: dict[str, Tensor]
    shown: bool = False  # whether the caller showed how the root is called

    def place(self, path: str) -> str:
        """The path in the whole model of a module or tensor of the root."""
        return ".".join(p for p in (self.prefix, path) if p) or "<root>"


@dataclass
class Input(Leaf):
    """A placeholder to be: its name, and how to make a fake of it (None when nothing is known)."""

    name: str
    fake: Callable[[Any], Any] | None = None
    kind: str = "tensor"


def fake(tensor: Tensor, mode: Any) -> Any:
    """A fake of an example tensor under a fake mode."""
    return mode.from_tensor(tensor)


def lowest_call(nodes: Iterable[fx.Node]) -> tuple[Event, dict[Event, None]]:
    """The lowest call in which all of some operations run, and the calls from it down to each, itself among them."""
    chains = [list(n.meta["event"].ancestors()) for n in nodes]
    common = set(chains[0]).intersection(*chains[1:])
    lowest: Event = next(e for e in chains[0] if e in common)
    return lowest, dict.fromkeys(e for chain in chains for e in chain[: chain.index(lowest) + 1])


def questions_of(event: Event) -> list[Question]:
    """What a call asked."""
    return event.questions


def all_events(event: Event) -> Iterator[Event]:
    """An event and all events inside it."""
    yield event
    for item in event.items:
        if isinstance(item, Event):
            yield from all_events(item)
