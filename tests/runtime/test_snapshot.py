"""A snapshot holds for the value that it was taken of, and for none that differs in what code can read."""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from reptool.runtime.snapshot import ABSENT, IncomparableError, same, snapshot

plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(width=16) | st.text(max_size=2)
values = st.recursive(
    plain,
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.text(max_size=2), v, max_size=3)
        | st.tuples(v, v)
        | v.map(lambda x: SimpleNamespace(a=x))
        | st.frozensets(plain, max_size=3)
    ),
    max_leaves=8,
)


@given(values)
def test_a_value_is_what_it_was(value: Any) -> None:
    seen = snapshot(value)
    assert same(value, seen)
    assert same(copy.deepcopy(value), seen)
    assert same(value, pickle.loads(pickle.dumps(seen)))


@given(values, values)
def test_what_prints_differently_is_something_else(a: Any, b: Any) -> None:
    if repr(a) != repr(b) and not _has_set(a):
        assert not same(b, snapshot(a)) or a == b


def _has_set(value: Any) -> bool:
    return "frozenset" in repr(value)


@dataclass
class Config:
    """Nested settings."""

    depth: int = 1
    inner: Any = None


def closing(held: int) -> Any:
    """A function that holds a number."""

    def holds() -> int:
        return held

    return holds


class Slotted:
    """Settings without a dictionary."""

    __slots__ = ("flag",)

    def __init__(self, flag: bool) -> None:
        self.flag = flag


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (True, 1),
        (1, 1.0),
        (None, False),
        ([1], (1,)),
        ({"a": {"b": [False]}}, {"a": {"b": [True]}}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({1, 2}, {1, 3}),
        (Config(1, Config(2)), Config(1, Config(3))),
        (Config(1), SimpleNamespace(depth=1, inner=None)),
        (Slotted(True), Slotted(False)),
        (torch.float32, torch.float64),
        (np.float64(1), np.float64(2)),
        (np.arange(3), np.arange(3) + 1),
        (functools.partial(sum, start=1), functools.partial(sum, start=2)),
        (sum, max),
        (closing(1), closing(2)),
        (lambda a=1: a, lambda a=2: a),
        (ABSENT, None),
        (nn.ReLU(), None),
        ([nn.ReLU(), 1], [nn.ReLU(), 2]),
        (torch.zeros(2), 3.0),
    ],
)
def test_other_values_are_told_apart(value: Any, other: Any) -> None:
    assert same(value, snapshot(value))
    assert not same(other, snapshot(value))
    assert not same(value, snapshot(other))


def test_later_changes_are_seen() -> None:
    value = {"a": [Config(1, {"b": {2}})]}
    seen = snapshot(value)
    value["a"][0].inner["b"].add(3)
    assert not same(value, seen)


def leaf(x: torch.Tensor) -> torch.Tensor:
    return x


relu, add = torch.relu, torch.add
fx.wrap("leaf")
fx.wrap("relu")


@pytest.mark.parametrize("name", ["leaf", "relu"])
def test_a_function_that_fx_wraps_while_it_traces_is_that_function(name: str) -> None:
    function, tried = globals()[name], []

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            now = globals()[name]
            tried.append((now is function, same(now, snapshot(function)), same(now, snapshot(add))))
            return x

    fx.symbolic_trace(Asking())
    assert tried == [(False, True, False)]


def test_values_of_a_thread_are_settings_too() -> None:
    local = threading.local()
    local.raw = False
    seen = snapshot(local)
    assert same(local, seen)
    local.raw = True
    assert not same(local, seen)


def test_tensors_are_compared_by_their_numbers() -> None:
    tensor = torch.tensor([1.0, float("nan")])
    seen = snapshot([tensor])
    assert same([tensor], seen)
    assert same([tensor.clone()], pickle.loads(pickle.dumps(seen)))
    assert seen == snapshot([tensor.clone()])
    assert not same([tensor.double()], seen)
    assert not same([tensor[:1]], seen)
    assert not same([torch.zeros(2)], seen)
    tensor[0] = 2.0
    assert not same([tensor], seen)
    with torch.inference_mode():
        other = torch.zeros(2)
        held = snapshot(other)
        assert same(other, held)
        other.add_(1)
        assert not same(other, held)
    with pytest.raises(IncomparableError, match="too large"):
        snapshot(torch.zeros(1).expand(2**21))


def test_modules_and_parameters_are_compared_by_kind() -> None:
    assert same([nn.Linear(2, 2), nn.Parameter(torch.ones(1))], snapshot([nn.ReLU(), nn.Parameter(torch.zeros(3))]))


def test_what_is_too_large_is_not_compared() -> None:
    with pytest.raises(IncomparableError):
        snapshot(list(range(10_000)))
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(IncomparableError):
        snapshot(cycle)


class Defaults:
    """A configuration whose values are those of its class until they are set."""

    raw, order = False, ["conv"]

    def asks(self) -> bool:
        """A method."""
        return self.raw


@pytest.mark.parametrize(("name", "value"), [("raw", True), ("order", []), ("asks", lambda: True)])
def test_what_an_object_holds_in_front_of_its_class_counts(name: str, value: Any) -> None:
    config = Defaults()
    seen = snapshot(config)
    assert same(config, seen)
    assert same(Defaults(), pickle.loads(pickle.dumps(seen)))
    setattr(config, name, value)
    assert not same(config, seen)


def test_a_class_that_is_changed_is_seen_in_its_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = snapshot(Defaults())
    monkeypatch.setattr(Defaults, "raw", True)
    assert not same(Defaults(), seen)
