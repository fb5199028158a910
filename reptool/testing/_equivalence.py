"""Do two functions compute the same, at more sizes than the one they were made for?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reptool.frontends.examples import other_sizes as other_sizes
from reptool.ir.walk import Inputs as Inputs
from reptool.ir.walk import call as _call
from reptool.ir.walk import map_tensors
from reptool.ir.walk import named_tensors as tensors_in


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _described(inputs: Inputs) -> str:
    return ", ".join(str(tuple(t.shape)) for _, t in tensors_in(inputs))


def _compare(wanted: Any, given: Any, rtol: float, atol: float, where: str) -> float:
    """The largest error relative to the size of the output it is in."""
    left, right = list(tensors_in(wanted)), list(tensors_in(given))
    if [path for path, _ in left] != [path for path, _ in right]:
        raise AssertionError(
            f"outputs of different structure at {where}: {[p for p, _ in left]} and {[p for p, _ in right]}"
        )
    worst = 0.0
    for (path, a), (_, b) in zip(left, right, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(f"{path} at {where}: {tuple(a.shape)} {a.dtype} became {tuple(b.shape)} {b.dtype}")
        if not a.is_floating_point():
            if not torch.equal(a, b):
                raise AssertionError(f"{path} at {where}: {a.dtype} values differ")
            continue
        a, b = a.double(), b.double()
        finite = a.isfinite()
        if not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()) or not b[finite].isfinite().all():
            raise AssertionError(f"{path} at {where}: not finite in other places")
        if not finite.any():
            continue
        size = float(a[finite].abs().max())
        error = float((a[finite] - b[finite]).abs().max())
        if error > rtol * size + atol:
            raise AssertionError(
                f"{path} at {where}: largest error {error:.3g}, "
                f"{error / max(size, 1e-300):.3g} of its size {size:.3g} (allowed {rtol:g})"
            )
        worst = max(worst, error / size if size else 0.0)
    return worst


def _prepared(function: Callable[..., Any], dtype: torch.dtype | None) -> Callable[..., Any]:
    if dtype is None or not isinstance(function, nn.Module):
        return function
    return copy.deepcopy(function).to(dtype)


def assert_equivalent(
    original: Callable[..., Any],
    other: Callable[..., Any],
    *inputs: Inputs,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    dtype: torch.dtype | None = torch.float64,
    vary: bool = True,
) -> float:
    """Assert that two functions give the same outputs, nested ones included.

    Args:
        original: a module or function; inputs that it raises on are left out if they are variations.
        other: what is to be the same; it may not raise where `original` does not.
        *inputs: each a tensor, a tuple of positional or a mapping of keyword arguments.
        rtol: allowed error as a fraction of the largest value of an output.
        atol: allowed error beside it.
        dtype: what copies of both modules and the inputs are cast to; None for as they are.
        vary: also compare at `other_sizes` of each of the inputs.

    Returns:
        The largest relative error.

    Raises:
        AssertionError: with the output, the largest relative error and the sizes it was found at.

    >>> assert_equivalent(nn.ReLU(), nn.Identity(), torch.randn(1, 2, 8, 8))
    Traceback (most recent call last):
    AssertionError: output at (1, 2, 8, 8): largest error ...
    """
    if not inputs:
        raise ValueError("no inputs to compare on")
    original, other = _prepared(original, dtype), _prepared(other, dtype)
    worst = 0.0
    for given in inputs:
        for index, case in enumerate([given, *(other_sizes(given) if vary else ())]):
            case = case if dtype is None else _cast(case, dtype)
            try:
                wanted = _call(original, case)
            except Exception:
                if index == 0:
                    raise
                continue
            try:
                got = _call(other, case)
            except Exception as error:
                raise AssertionError(f"the other one raised at {_described(case)}: {error!r}") from error
            worst = max(worst, _compare(wanted, got, rtol, atol, _described(case)))
    return worst
