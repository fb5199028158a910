"""Paths of modules: which of them lies in which."""

from __future__ import annotations

from collections.abc import Collection


def is_below(path: str, others: Collection[str]) -> bool:
    """Whether a path lies below one of others.

    >>> is_below("a.b.c", {"a.b"}), is_below("a.b", {"a.b"}), is_below("a.bc", {"a.b"})
    (True, False, False)
    """
    while "." in path:
        path = path.rpartition(".")[0]
        if path in others:
            return True
    return False


def lies_in(path: str, others: Collection[str]) -> bool:
    """Whether a path is one of others, or below one; everything is below the root, whose path is empty."""
    return path in others or "" in others or is_below(path, others)
