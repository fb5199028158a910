"""Measured work: what a module executes, where that differs from what its kernel says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What one run executes, for each position of its output: multiplications, elements moved; and its operations."""

    multiplications: float = 0.0
    moved: float = 0.0
    operations: int = 1
