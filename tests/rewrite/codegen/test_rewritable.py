"""Which functions can be written anew from their trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from reptool.rewrite.codegen.rewritable import check_rewritable
from reptool.rewrite.constants import CannotCutError


def plain(self: Any, x: Any, y: Any = 1) -> Any:
    return [x + i for i in range(y)]


def within(self: Any, x: Any) -> Any:
    with torch.no_grad():
        return x


def trying(self: Any, x: Any) -> Any:
    try:
        return x + 1
    except TypeError:
        return x


def writing(self: Any, x: Any) -> Any:
    self.last = x
    return x


def deleting(self: Any, x: Any) -> Any:
    del self.last
    return x


def yielding(self: Any, x: Any) -> Iterator[Any]:
    yield x


def closing(number: int) -> Callable[..., Any]:
    def closed(self: Any, x: Any) -> Any:
        return x + number

    return closed


def calling(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def closed(self: Any, x: Any) -> Any:
        return function(self, x)

    return closed


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("function", [plain, calling(plain), decorated(lambda self, x: x)])
def test_what_the_trace_shows_can_be_written(function: Callable[..., Any]) -> None:
    if function.__name__ == "plain" and hasattr(function, "__wrapped__"):
        with pytest.raises(CannotCutError, match="it is decorated, and takes 'y', which may be left out"):
            check_rewritable(function)
        return
    check_rewritable(function)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (within, "it has a `with` block"),
        (trying, "it has a `try` block"),
        (writing, "it writes attributes"),
        (deleting, "it writes attributes"),
        (yielding, "it is a generator or closes over variables"),
        (closing(1), "it is a generator or closes over variables"),
        (decorated(writing), "it writes attributes"),
        (decorated(plain), "it is decorated, and takes 'y', which may be left out"),
        (len, "it is not a Python function"),
    ],
)
def test_what_it_does_not_show_cannot(function: Callable[..., Any], why: str) -> None:
    with pytest.raises(CannotCutError, match=why):
        check_rewritable(function)
