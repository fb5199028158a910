"""Other values than the one that is there, as text: near it, of another kind, and those that the code compares with."""

from __future__ import annotations

import math
import re
from enum import Enum
from random import Random
from typing import Any

import torch

from reptool.testing._perturbing.code import Code

ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
_DTYPES = (torch.float32, torch.float64, torch.float16)


def is_atom(value: object) -> bool:
    """Whether it is a value that `other_value` knows others of."""
    return isinstance(value, ATOMS)


def other_value(value: Any, read: str, code: Code, random: Random) -> str:
    """The text of a value that differs from `value`, which `read` reads."""
    if isinstance(value, torch.Tensor):
        other = f"~{read}" if value.dtype == torch.bool else f"{read} * 2 + 1"
        return random.choice([other, f"{read}.copy_({other})"])
    if isinstance(value, Enum):
        names = [m.name for m in type(value) if m is not value]
        return f"type({read})[{random.choice(names)!r}]" if names else "None"
    compared = [v for v in code.compared.get(last_name(read), ()) if not _equal(v, value) and not _is_odd(v)]
    if compared and random.random() < 0.6:
        return repr(random.choice(compared))
    if random.random() < 0.15:
        return repr(random.choice([v for v in (None, True, False, 0, 1, "other") if not _equal(v, value)]))
    found = [v for v in _candidates(value, code) if not _equal(v, value) and not _is_odd(v)]
    return repr(random.choice(found)) if found else "None"


def last_name(read: str) -> str:
    """The name that an expression ends with, its items aside.

    >>> last_name("m.block.flags[3]"), last_name("kwargs['raw']"), last_name("m.config.raw")
    ('flags', 'raw', 'raw')
    """
    named = re.search(r"(?:\.(\w+)|\['(\w+)'\])(?:\[\d+\])*$", read)
    return (named[1] or named[2]) if named else read


def _candidates(value: Any, code: Code) -> list[Any]:
    words, numbers = sorted(code.words), sorted(code.numbers)
    if value is None:
        return [True, 1, 0.5, "other", *words, *numbers]
    if isinstance(value, bool):
        return [not value] * 4 + [int(not value), None]
    if isinstance(value, int):
        return [value + 1, value - 1, 0, 1, -value, *numbers, *[n for n in numbers if isinstance(n, int)] * 2]
    if isinstance(value, float):
        return [value + 1.0, value * 2, 0.0, 1.0, *numbers]
    if isinstance(value, str):
        return ["other", "", value + "_", *words, *words]
    if isinstance(value, torch.dtype):
        return list(_DTYPES)
    return [None, True]


def _equal(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
