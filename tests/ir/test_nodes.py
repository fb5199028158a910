"""What a node of the graph is, by its name and by who reads it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from reptool.ir.nodes import is_asked, only_asserted


@pytest.mark.parametrize(("last", "asserted"), [(torch._assert, True), (torch.zeros, False)])
def test_long_arithmetic_on_sizes_is_followed(last: object, asserted: bool) -> None:
    graph = fx.Graph()
    size = number = graph.call_method("size", (graph.placeholder("x"), 0))
    for _ in range(3_000):
        number = graph.call_function(operator.add, (number, number))
        number.meta["kind"] = "number"
    graph.call_function(last, (number,))  # type: ignore[arg-type]
    assert only_asserted(size) is asserted


@pytest.mark.parametrize("used", [True, False])
def test_a_comparison_that_no_operation_uses_is_asked_by_python(used: bool) -> None:
    graph = fx.Graph()
    size = graph.call_method("size", (graph.placeholder("x"), 0))
    compared = graph.call_function(operator.gt, (size, 32))
    compared.meta["kind"] = "number"
    if used:
        graph.call_function(torch._assert, (compared, "wide"))  # type: ignore[arg-type]
    assert is_asked(compared) is not used
    assert only_asserted(size) is used
