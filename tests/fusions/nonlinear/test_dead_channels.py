"""Dead channels between two layers become a bias."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reptool.errors import InputError
from reptool.fusions import drop_channels
from reptool.fusions.nonlinear.dead_channels import dead_channels

FUNCTIONS = [torch.relu, torch.sigmoid, torch.tanh]


@given(
    st.integers(0, 2), st.lists(st.booleans(), min_size=2, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6),
    st.booleans(), st.booleans(), st.sampled_from(FUNCTIONS),
)  # fmt: skip
def test_two_layers_without_them_are_the_same(
    axes: int, zero: list[bool], blind: list[bool], one: bool, two: bool, function: object
) -> None:
    make = (nn.Linear, nn.Conv1d, nn.Conv2d)[axes]
    size = (3,) if axes else ()
    first, second = (make(*c, *size, bias=b).double() for c, b in (((3, len(zero)), one), ((len(zero), 2), two)))  # type: ignore[operator]
    x = torch.randn(2, 3, *(9, 8)[:axes], dtype=torch.float64)
    with torch.no_grad():
        first.weight[torch.tensor(zero)] = 0
        second.weight[:, torch.tensor(blind[: len(zero)])] = 0
        wanted = second(function(first(x)))  # type: ignore[operator]
        constant, unread = dead_channels(first.weight, second.weight)
        kept = ~(constant | unread)
        if not bool(kept.any()):
            return
        held = torch.zeros(len(zero), dtype=torch.float64) if first.bias is None else first.bias
        dead = torch.where(unread, 0.0, function(held))  # type: ignore[operator]
        given = [first.weight, first.bias, second.weight, second.bias]
        before = [None if t is None else t.clone() for t in given]
        w1, b1, w2, b2 = drop_channels(*given, kept, dead)
    assert all(t is None or torch.equal(t, b) for t, b in zip(given, before, strict=True) if b is not None)
    run = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d)[axes]
    torch.testing.assert_close(run(function(run(x, w1, b1)), w2, b2), wanted)  # type: ignore[operator]


def test_all_of_them_is_an_error() -> None:
    w = torch.zeros(2, 1)
    with pytest.raises(InputError, match="keep at least one"):
        drop_channels(w, None, w.T, None, torch.tensor([False, False]), torch.zeros(2))
