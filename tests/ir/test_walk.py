"""The tensors, nodes and values in nested structures."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx

from reptool.ir.walk import call, cloned, map_tensors, named_tensors, nodes_in, only_tensors, tensors_in


@dataclass
class Held:
    """A structure of the user's."""

    mask: Tensor
    name: str = "held"


class Pair(NamedTuple):
    """A named tuple."""

    first: Tensor
    second: Any


def structure() -> Any:
    return {"a": [torch.ones(2), 3], "b": Pair(torch.arange(2), Held(torch.zeros(1, dtype=torch.float64)))}


def test_tensors_have_paths_by_which_python_finds_them() -> None:
    given = structure()
    found = dict(named_tensors(given, "given"))
    assert list(found) == ["given['a'][0]", "given['b'][0]", "given['b'][1].mask"]
    assert all(eval(path, {"given": given}) is tensor for path, tensor in found.items())
    assert [t.dtype for t in tensors_in(given)] == [torch.float32, torch.float64]


def test_a_structure_with_other_tensors_is_of_the_same_classes() -> None:
    given = structure()
    made = map_tensors(given, lambda t: t + 1)
    assert type(made["b"]) is Pair
    assert type(made["b"].second) is Held
    assert [float(t.sum()) for _, t in named_tensors(made)] == [4.0, 3.0, 1.0]
    assert [float(t.sum()) for _, t in named_tensors(given)] == [2.0, 1.0, 0.0]
    assert type(map_tensors(OrderedDict(x=torch.ones(1)), Tensor.neg)) is OrderedDict


def test_inputs_are_copied_before_code_may_write_into_them() -> None:
    x = torch.ones(2)
    assert call(lambda t: t.add_(1), x).sum() == 4
    assert call(lambda t, u: t.add_(u), (x, x)).sum() == 4
    assert call(lambda t: t.add_(1), {"t": x}).sum() == 4
    assert x.sum() == 2
    wide = cloned((x, torch.arange(2)), double=True)
    assert [t.dtype for t in wide] == [torch.float64, torch.int64]
    assert wide[0] is not x


@pytest.mark.parametrize("kind", ["tensor", "size"])
def test_nodes_are_found_wherever_they_are(kind: str) -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    for node in (x, y):
        node.meta["kind"] = kind
    assert list(nodes_in([x, {"k": (y, x)}, slice(x, None)])) == [x, y, x, x]
    assert only_tensors((x, (y,))) == (kind == "tensor")
    assert not only_tensors([x])
    assert not only_tensors(())
