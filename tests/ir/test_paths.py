"""Which paths lie below which."""

from __future__ import annotations

import pytest

from reptool.ir.paths import is_below, lies_in


@pytest.mark.parametrize(
    ("path", "other", "below", "inside"),
    [
        ("a.b.c", "a", True, True), ("a.b", "a.b", False, True), ("a.bc", "a.b", False, False),
        ("a", "a.b", False, False), ("a", "", False, True), ("", "a", False, False), ("", "", False, True),
    ],
)  # fmt: skip
def test_below_is_another_module_and_inside_may_be_the_same(path: str, other: str, below: bool, inside: bool) -> None:
    assert is_below(path, {other, "z"}) is below
    assert lies_in(path, {other, "z"}) is inside
