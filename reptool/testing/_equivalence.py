"""Do two functions compute the same, at more sizes than the one they were made for?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.nested import Inputs as Inputs
from reptool.ir.nested import call as _call
from reptool.ir.nested import mapped
from reptool.ir.nested import tensors_in as tensors_in

_SIZES = ((13, 10), (16, 19), (8, 9), (5, 7), (2, 3), (1, 1))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return mapped(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def other_sizes(inputs: Inputs, seed: int = 0) -> list[Inputs]:
    """`inputs` with other batch and image sizes: H != W, N >= 2, down to images of one pixel.

    Only batch and image sizes change; images of half the size stay half as large.

    Args:
        inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        seed: equal seeds give equal values.

    >>> [tuple(x.shape) for x in other_sizes(torch.zeros(1, 3, 8, 8))][:2]
    [(2, 3, 13, 10), (3, 3, 16, 19)]
    """
    generator = torch.Generator().manual_seed(seed)
    floating = [t for _, t in tensors_in(inputs) if t.is_floating_point() and t.dim() >= 2]
    if not floating:
        return []
    axes = max(t.dim() for t in floating) - 2
    largest = [max(t.shape[2 + i] for t in floating if t.dim() > 2 + i) for i in range(axes)]
    batch = len(floating[0])

    def resized(t: Tensor, sizes: Sequence[int], wanted: int) -> Tensor:
        if t.dim() < 1 or len(t) != batch:
            return t
        if not t.is_floating_point():
            return t[torch.arange(wanted) % batch]
        image = [max(1, -(-size * own // most)) for size, own, most in zip(sizes, t.shape[2:], largest, strict=False)]
        shape = (wanted, *t.shape[1:2], *image)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(t.dtype)

    return [
        mapped(inputs, partial(resized, sizes=(*sizes, *sizes), wanted=2 + count % 2))
        for count, sizes in enumerate(_SIZES if axes else _SIZES[:2])
    ]


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
