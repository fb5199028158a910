"""Plain data: values of Python as JSON holds them, and back; what is not listed here is an error, never a pickle.

Numbers, strings, None and lists are themselves. Everything else is a mapping of one entry, whose key says what it is:
``{"tuple": [1, 2]}``, ``{"tensor": [[2, 3], "float32"]}`` (a shape and a dtype, no values).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.work import Work
from reptool.errors import RecipeError
from reptool.refusal import Code, Refusal

MAX_ELEMENTS = 1 << 28
MAX_DEPTH = 24


class NotPlainError(Exception):
    """A value that is no plain data."""


def encode(value: Any) -> Any:
    """A value as JSON holds it.

    Raises:
        NotPlainError: it is of another type.

    >>> encode((1, torch.zeros(2, 3)))
    {'tuple': [1, {'tensor': [[2, 3], 'float32']}]}
    """
    kind = type(value)
    if value is None or kind in (bool, int, str) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encode(v) for v in value]
    for name, types, write in _WRITTEN:
        if kind in types:
            return {name: write(value)}
    raise NotPlainError(f"a {kind.__name__}")


def decode(data: Any, depth: int = 0) -> Any:
    """The value that `encode` wrote down; a tensor is one of zeros.

    Raises:
        RecipeError: the data are not such.

    >>> decode({"tuple": [1, {"dtype": "float16"}]})
    (1, torch.float16)
    """
    if depth > MAX_DEPTH:
        raise RecipeError("the recipe is nested too deep")
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is list:
        return [decode(v, depth + 1) for v in data]
    name, held = next(iter(data.items())) if type(data) is dict and len(data) == 1 else (None, None)
    read = _READ.get(str(name))
    if read is None:
        kind = ", ".join(map(str, data))[:80] if type(data) is dict else type(data).__name__
        raise RecipeError(f"the recipe holds {kind!r}, which is no data that reptool writes")
    try:
        return read(held, depth + 1)
    except RecipeError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise RecipeError(f"the recipe holds a {name} that cannot be read") from error


# --- writing
def _dtype(value: torch.dtype) -> str:
    return str(value).removeprefix("torch.")


def _pairs(value: dict[Any, Any]) -> list[Any]:
    return [[encode(k), encode(v)] for k, v in value.items()]


def _channels(value: Channels | None) -> Any:
    return None if value is None else [value.in_channels, value.lo.tolist(), value.hi.tolist()]


def _kernel(value: Kernel) -> list[Any]:
    axes = None if value.axes is None else [
        [a.kernel_size, a.stride, a.dilation, a.before, a.after, a.border.value] for a in value.axes
    ]  # fmt: skip
    border = None if value.border_value is None else value.border_value.tolist()
    return [_channels(value.channels), axes, value.biased, border, encode(value.transposed)]


_WRITTEN: tuple[tuple[str, tuple[type, ...], Callable[[Any], Any]], ...] = (
    ("float", (float,), repr),
    ("tuple", (tuple, torch.Size), lambda v: [encode(x) for x in v]),
    ("dict", (dict,), _pairs),
    ("tensor", (Tensor, torch.nn.Parameter), lambda v: [list(v.shape), _dtype(v.dtype)]),
    ("dtype", (torch.dtype,), _dtype),
    ("slice", (slice,), lambda v: [encode(v.start), encode(v.stop), encode(v.step)]),
    ("kernel", (Kernel,), _kernel),
    ("work", (Work,), lambda v: [v.multiplications, v.moved, v.operations]),
    ("refusal", (Refusal,), lambda v: [v.code.value, v.sentence, list(v.nodes)]),
)


# --- reading
def dtype_of(name: Any) -> torch.dtype:
    """The dtype of a name."""
    found = getattr(torch, name) if type(name) is str and name.isidentifier() else None
    if not isinstance(found, torch.dtype):
        raise RecipeError(f"the recipe names a dtype {str(name)[:40]!r}, which there is not")
    return found


def shape_of(sizes: Any) -> tuple[int, ...]:
    """A shape of a number of elements that fits."""
    if type(sizes) is not list or not all(type(n) is int and n >= 0 for n in sizes):
        raise RecipeError(f"the recipe holds the shape {str(sizes)[:80]}, which is none")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise RecipeError(f"the recipe asks for an example input of {math.prod(sizes):,} elements")
    return tuple(sizes)


def _axis(size: Any, stride: Any, dilation: Any, before: Any, after: Any, border: Any) -> Axis:
    return Axis(int(size), int(stride), int(dilation), int(before), int(after), Border(border))


def _read_kernel(held: Any, depth: int) -> Kernel:
    channels, axes, biased, border, transposed = held
    made = None if channels is None else Channels(int(channels[0]), np.array(channels[1]), np.array(channels[2]))
    along = None if axes is None else tuple(_axis(*a) for a in axes)
    value = None if border is None else torch.tensor(border, dtype=torch.float64)
    return Kernel(made, along, None, None, bool(biased), None, value, decode(transposed, depth))


_READ: dict[str, Callable[[Any, int], Any]] = {
    "float": lambda h, d: float(h),
    "tuple": lambda h, d: tuple(decode(v, d) for v in h),
    "dict": lambda h, d: {decode(k, d): decode(v, d) for k, v in h},
    "tensor": lambda h, d: torch.zeros(shape_of(h[0]), dtype=dtype_of(h[1])),
    "dtype": lambda h, d: dtype_of(h),
    "slice": lambda h, d: slice(decode(h[0], d), decode(h[1], d), decode(h[2], d)),
    "kernel": _read_kernel,
    "work": lambda h, d: Work(float(h[0]), float(h[1]), int(h[2])),
    "refusal": lambda h, d: Refusal(Code(h[0]), str(h[1]), tuple(map(str, h[2]))),
}
