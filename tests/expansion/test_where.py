"""Selecting convolutions."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from reptool.errors import InputError
from reptool.expansion.where import ancestors, convolutions, select


def network() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(4, 4, (1, 3)), nn.Conv1d(4, 4, 3))
    shared = nn.Conv2d(3, 4, 3)
    return nn.Sequential(shared, inner, nn.ConvTranspose2d(4, 4, 3), shared, nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        (None, ["0", "1.0", "1.1"]),
        ("1.*", ["1.0", "1.1"]),
        ("1", ["1.0", "1.1"]),
        ("*.0", ["1.0"]),
        (nn.Conv1d, ["1.1"]),
        (nn.Sequential, ["0", "1.0", "1.1"]),
        (3, ["0", "1.1"]),
        ((1, 3), ["1.0"]),
        (lambda path, conv: path == "0", ["0"]),
        (["0", nn.Conv1d], ["0", "1.1"]),
    ],
)
def test_criteria(where: Any, paths: list[str]) -> None:
    assert list(select(network(), where)) == paths


@pytest.mark.parametrize("where", ["layer9.*", nn.Conv3d, 7, (3, 1), lambda *_: False, ["0", "nothing"]])
def test_a_criterion_that_selects_nothing(where: Any) -> None:
    with pytest.raises(InputError, match="selects none of the 3 convolutions"):
        select(network(), where)


def test_other_errors() -> None:
    with pytest.raises(InputError, match=r"no nn\.Conv1d"):
        select(nn.Linear(2, 2), None)
    with pytest.raises(InputError, match="was given, expected a path pattern"):
        select(network(), 1.5)  # type: ignore[arg-type]


def test_a_module_registered_twice_is_named_once() -> None:
    assert [path for path, _ in convolutions(network())] == ["0", "1.0", "1.1"]


def test_ancestors() -> None:
    net = network()
    assert ancestors(net, "1.0") == [net, net[1]]
    assert ancestors(net, "") == []
