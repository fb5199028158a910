"""Argument checks of the blocks: every message says what was found, what was expected and what to do."""

from __future__ import annotations

from math import gcd
from typing import Any

from reptool.errors import InputError

Size = int | tuple[int, ...]
"""One number for all spatial axes, or one number per axis."""


def require(condition: bool, found: str, expected: str, remedy: str) -> None:
    """Raise `InputError` unless `condition` holds."""
    if not condition:
        raise InputError(f"{found} was given, expected {expected}; {remedy}.")


def per_axis(name: str, value: Size, dim: int, least: int) -> tuple[int, ...]:
    """Write `value` once per spatial axis; all entries are integers of at least `least`."""
    require(dim in (1, 2, 3), f"dim={dim}", "1, 2 or 3 spatial axes", "flatten or unsqueeze the input first")
    values: tuple[Any, ...] = tuple(value) if isinstance(value, tuple | list) else (value,) * dim
    require(
        len(values) == dim and all(isinstance(v, int) and v >= least for v in values),
        f"{name}={value!r}",
        f"an integer of at least {least}, or {dim} of them",
        f"pass one number per spatial axis (dim={dim})",
    )
    return values


def check_channels(block: str, in_channels: int, out_channels: int, groups: int) -> None:
    """All three are positive, and `groups` divides both channel counts."""
    found = f"{block} with in_channels={in_channels}, out_channels={out_channels}, groups={groups}"
    require(min(in_channels, out_channels, groups) >= 1, found, "positive numbers", "pass positive numbers")
    common = gcd(in_channels, out_channels)
    require(
        common % groups == 0,
        found,
        "groups that divides both channel counts",
        f"use a divisor of {common} as groups or change the channels",
    )


def check_odd(block: str, name: str, value: tuple[int, ...]) -> None:
    """All entries are odd, so that smaller kernels have a centre to sit on."""
    require(
        all(v % 2 for v in value),
        f"{block} with {name}={value[0] if len(set(value)) == 1 else value}",
        "odd sizes (the branches share the centre tap, which an even kernel does not have)",
        "use the next odd size or a plain convolution",
    )
