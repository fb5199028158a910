"""What a method that was written asks of its call."""

from __future__ import annotations

import pytest
import torch

from reptool.runtime.expect import Like, fits, holds


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (torch.zeros(2, 3), Like((-1, 3)), True),
        (torch.zeros(1, 3), Like((-2, 3)), False),
        (torch.zeros(0, 3), Like((-1, 3)), False),
        (torch.zeros(2, 3, 1), Like((-1, 3)), False),
        (None, Like((-1, 3)), False),
        (torch.zeros(3), Like((3,), torch.float64), False),
        (torch.zeros(3), Like((3,), None, "cpu"), True),
        (0, False, False),
        (1.0, 1, False),
        ([torch.zeros(3), 1], (Like((3,)), 1), True),
        ([torch.zeros(3)], (Like((3,)), 1), False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
    ],
)
def test_fits(value: object, wanted: object, expected: bool) -> None:
    assert fits(value, wanted) is expected
    assert holds((value,), (wanted,)) is expected
    assert not holds((value,))
