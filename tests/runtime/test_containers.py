"""Containers of any class come back as what they were."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reptool.runtime.containers import Place, filled, leaves, mapped, parts, read_key, template_of

Named = namedtuple("Named", "a b")


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary whose items are read as attributes."""

    __getattr__ = dict.__getitem__


class Itself(dict):  # type: ignore[type-arg]
    """A dictionary that is its own ``__dict__``."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class Tagged(list):  # type: ignore[type-arg]
    """A list with an attribute; its constructor may not run."""

    def __init__(self, *items: Any) -> None:
        super().__init__(items)
        self.tag = "tagged"


class Ordered(tuple):  # type: ignore[type-arg]
    """A tuple of a class of its own."""


@dataclass
class Plain:
    """A dataclass."""

    a: Any
    b: Any = None


@dataclass(frozen=True)
class Frozen:
    """A frozen dataclass."""

    a: Any


@dataclass
class Slotted:
    """A dataclass with slots."""

    __slots__ = ("a", "b")
    a: Any
    b: Any


@dataclass
class Output(OrderedDict):  # type: ignore[type-arg]
    """An ordered dictionary and dataclass in one, as model outputs of transformers are."""

    logits: Any = None
    states: Any = None

    def __post_init__(self) -> None:
        for name in ("logits", "states"):
            if getattr(self, name) is not None:
                self[name] = getattr(self, name)


CONTAINERS: list[Any] = [
    [1, 2],
    (1, 2),
    {"a": 1, "b": {"c": 2}},
    Named(1, 2),
    Attributes(a=1, b=2),
    Itself(a=1, b=2),
    Tagged(1, 2),
    Ordered((1, 2)),
    Plain(1, [2]),
    Frozen(1),
    Slotted(1, 2),
    Output(logits=1),
    OrderedDict(b=1, a=2),
    defaultdict(list, {"a": 1}),
    SimpleNamespace(a=1, b=Plain(2)),
    slice(1, 2),
    [Attributes(a=Named(1, 2))],
]


def described(value: Any) -> Any:
    """Class, values and attributes of a structure."""
    held = parts(value)
    if held is None:
        return value
    return type(value), [(s, described(v)) for s, v in held], getattr(value, "__dict__", None) is value


@pytest.mark.parametrize("value", CONTAINERS, ids=lambda v: type(v).__name__)
def test_a_container_is_built_anew_as_what_it_was(value: Any) -> None:
    made = mapped(value, lambda v: v + 10 if type(v) is int else v)
    assert described(mapped(made, lambda v: v - 10 if type(v) is int else v)) == described(value)
    assert [v for v in leaves(made) if type(v) is int] == [v + 10 for v in leaves(value) if type(v) is int]


@pytest.mark.parametrize("value", CONTAINERS, ids=lambda v: type(v).__name__)
def test_a_template_is_data_and_is_filled(value: Any) -> None:
    numbers = [v for v in leaves(value) if type(v) is int]
    template = template_of(mapped(value, lambda v: Place(numbers.index(v)) if type(v) is int else v))
    for held in (template, pickle.loads(pickle.dumps(template)), copy.deepcopy(template)):
        assert described(filled(held, *numbers)) == described(value)
    assert described(filled(template, *["x"] * len(numbers))) != described(value)


def test_what_is_no_container() -> None:
    for value in (1, "a", None, torch.ones(1), torch.nn.ReLU(), int, {1, 2}, len, torch.Size([1])):
        assert parts(value) is None


def test_an_object_in_which_nothing_changes_stays_the_object() -> None:
    held = SimpleNamespace(a=1)
    assert mapped(held, lambda v: v) is held
    assert mapped([held], lambda v: v)[0] is held
    assert mapped(held, lambda v: v + 1) is not held


def test_items_are_read_past_the_class() -> None:
    class Odd(dict):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            raise AssertionError(key)

    assert read_key(Odd(a=1), "a") == 1
    assert read_key([3], 0) == 3
