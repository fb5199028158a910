"""Modules are alike where code sees the same of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from reptool.models.likeness import structure


def block() -> Any:
    found: Any = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    found.rate, found.sizes, found.note, found.empty = 0.5, (1, (2, "a")), None, []
    return found


def tied(model: Any) -> None:
    model[2][0].weight = nn.Parameter(torch.zeros(3, 3))
    model[2].append(nn.Linear(3, 3))
    model[2][2].weight = model[2][0].weight


def untied(model: Any) -> None:
    model[2][0].weight = nn.Parameter(torch.zeros(3, 3))
    model[2].append(nn.Linear(3, 3))


def hooked(model: Any) -> None:
    model[0].register_forward_hook(lambda *_: None)


CHANGES: dict[str, Callable[[Any], object]] = {
    "number": lambda m: setattr(m, "rate", 1),
    "sign": lambda m: setattr(m, "rate", -0.0),
    "kind": lambda m: setattr(m, "note", False),
    "nested": lambda m: setattr(m, "sizes", (1, (2, "b"))),
    "filled": lambda m: m.empty.append(1),
    "more": lambda m: setattr(m, "more", 1),
    "geometry": lambda m: setattr(m[0], "stride", (2, 2)),
    "mode": lambda m: m[1].train(),
    "dtype": lambda m: m[2].double(),
    "frozen": lambda m: m[2].requires_grad_(False),
    "bias": lambda m: setattr(m[0], "bias", None),
    "class": lambda m: setattr(m[2], "1", nn.ReLU6()),
    "order": lambda m: m[2]._modules.update({"0": m[2][1], "1": m[2][0]}),
    "hook": hooked,
    "tied": tied,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_seen(name: str) -> None:
    one, other = block().eval(), block().eval()
    assert structure(one) == structure(other) is not None
    CHANGES[name](other)
    assert structure(one) != structure(other)


def test_weights_that_are_one_tensor_are_told_from_two() -> None:
    one, other = block(), block()
    tied(one)
    untied(other)
    assert structure(one) != structure(other) is not None


def test_one_object_is_the_same_and_two_are_not() -> None:
    one, other, settings = block(), block(), object()
    one.settings = other.settings = settings
    assert structure(one) == structure(other)
    other.settings = object()
    assert structure(one) != structure(other)
    one.settings = other.settings = None
    one.empty, other.empty = [{"a": 1}], [{"a": 1}]
    assert structure(one) == structure(other)
    one.empty, other.empty = [one.empty, one.empty], [[{"a": 1}], [{"a": 1}]]
    assert structure(one) != structure(other)


def test_nothing_is_said_of_modules_behind_plain_attributes_and_tensors() -> None:
    one, other = block(), block()
    object.__setattr__(one, "parent", [other])
    assert structure(one) is not None
    vars(one)["parent"] = other
    assert structure(one) is None
    other[0].weight.owner = other
    assert structure(other) is None
