"""Many cases of one kind: a part of them in `make test`, spread over all, and the others in `make test-slow`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def sparse(cases: Iterable[Any], every: int = 3) -> list[Any]:
    """The cases for `pytest.mark.parametrize`: one of `every` is quick, and the others are marked as slow."""
    return [pytest.param(case, marks=[pytest.mark.slow] if i % every else []) for i, case in enumerate(cases)]
