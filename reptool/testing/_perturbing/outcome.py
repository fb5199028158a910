"""What a call gives after some changes, and whether two such outcomes are the same."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.walk import map_tensors

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 0.25}
"""Allowed error as a part of the largest value of an output, for the coarsest dtype that took part."""


@dataclass
class Outcome:
    """What came back, or what was raised instead.

    Args:
        value: outputs, what hooks saw and the inputs afterwards.
        error: what was raised.
        warnings: texts of warnings.
    """

    value: Any = None
    error: Exception | None = None
    warnings: list[str] = field(default_factory=list)


def run(statements: Sequence[str], names: dict[str, Any]) -> Outcome:
    """Run statements and then the call, all with these names."""
    with warnings.catch_warnings(record=True) as said, torch.no_grad():
        warnings.simplefilter("always")
        outcome = Outcome()
        try:
            torch.default_generator.manual_seed(0)
            for statement in statements:
                exec(_compiled(statement), names)
            result = names["m"](*names["args"], **names["kwargs"])
            outcome.value = _kept([names["out"], names["looked"], result, names["args"], names["kwargs"]])
        except Exception as error:
            outcome.error = error
    outcome.warnings = [str(w.message) for w in said]
    return outcome


def _kept(value: Any) -> Any:
    """Copies of tensors that are the model's own, or views of them: what is undone would change them."""
    try:
        return map_tensors(value, Tensor.clone)
    except Exception:  # a container that is not made of its items
        return value


_cache: dict[str, Any] = {}


def _compiled(statement: str) -> Any:
    if statement not in _cache:
        if len(_cache) > 5000:
            _cache.clear()
        _cache[statement] = compile(statement, "<change>", "exec")
    return _cache[statement]


def differences(wanted: Any, given: Any, dtype: torch.dtype, where: str = "output") -> Iterator[tuple[str, float]]:
    """Where two values differ, each with the relative error, infinite where it is not one of size.

    Args:
        wanted: what the original gives.
        given: what the deployed one gives.
        dtype: the dtype that the deployed one was made in.
        where: the path so far.
    """
    if isinstance(wanted, Tensor) and isinstance(given, Tensor):
        yield from _tensors_differ(wanted, given, dtype, where)
    elif isinstance(wanted, Mapping) and isinstance(given, Mapping):
        if list(wanted) != list(given):
            yield f"{where}: keys {list(wanted)[:5]} became {list(given)[:5]}", float("inf")
            return
        for key in wanted:
            yield from differences(wanted[key], given[key], dtype, f"{where}[{key!r}]")
    elif isinstance(wanted, (list, tuple)) and isinstance(given, (list, tuple)):
        if len(wanted) != len(given):
            yield f"{where}: {len(wanted)} items became {len(given)}", float("inf")
            return
        for index, (a, b) in enumerate(zip(wanted, given, strict=True)):
            yield from differences(a, b, dtype, f"{where}[{index}]")
    elif isinstance(wanted, Tensor) or isinstance(given, Tensor) or not _plain_equal(wanted, given):
        yield f"{where}: {_short(wanted)} became {_short(given)}", float("inf")


def _plain_equal(a: Any, b: Any) -> bool:
    if isinstance(a, (bool, int, str, bytes, type(None), torch.dtype)):
        return type(a) is type(b) and bool(a == b)
    if isinstance(a, (float, complex)) and isinstance(b, (float, complex)):
        return bool(a != a and b != b) or abs(a - b) <= 1e-3 * max(abs(a), abs(b))
    return not isinstance(b, (bool, int, float, str, bytes, type(None)))  # objects: whatever they are


def _short(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]


def _tensors_differ(a: Tensor, b: Tensor, dtype: torch.dtype, where: str) -> Iterator[tuple[str, float]]:
    if a.shape != b.shape or a.dtype != b.dtype:
        yield f"{where}: {tuple(a.shape)} {a.dtype} became {tuple(b.shape)} {b.dtype}", float("inf")
        return
    if not a.is_floating_point():
        if not torch.equal(a, b):
            yield f"{where}: {a.dtype} values differ", float("inf")
        return
    tolerance = max(TOLERANCE.get(a.dtype, 0.25), TOLERANCE.get(dtype, 0.25))
    a, b = a.detach().double(), b.detach().double()
    error = float((a - b).abs().max()) if a.numel() else 0.0
    size = float(a.abs().max()) if a.numel() else 0.0
    if error <= tolerance * size + 1e-12 and size < float("inf"):
        return
    finite = a.isfinite()
    if not torch.equal(a[~finite].nan_to_num(7.0), b[~finite].nan_to_num(7.0)) or not b[finite].isfinite().all():
        yield f"{where}: not finite in other places", float("inf")
        return
    if not finite.any():
        return
    size, error = float(a[finite].abs().max()), float((a[finite] - b[finite]).abs().max())
    if error > tolerance * size + 1e-12:
        yield f"{where}: largest error {error:.3g}, values up to {size:.3g}", error / size if size else float("inf")


class Settled:
    """What a method gave, run to its end: generators and coroutines run, modules called on what they are called with.

    Args:
        model: the model of this side.
        paths: of the modules that were handed out, in order; written for the original, read for the deployed one.
        recorded: what each module of the original is called with.
        copied: makes fresh inputs.
        writes: whether this side is the original.
    """

    def __init__(self, model: nn.Module, paths: list[str | None], recorded: Any, writes: bool) -> None:
        self.model, self.paths, self.recorded, self.writes, self.next = model, paths, recorded, writes, 0

    def __call__(self, value: Any, path: str = "", depth: int = 0) -> Any:
        """The value, with everything in it run."""
        if inspect.iscoroutine(value):
            return self(_awaited(value), path, depth)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, Tensor):
            return value.clone()
        if depth > 4:
            return value
        if isinstance(value, Mapping):
            return {key: self(item, path, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)) or inspect.isgenerator(value) or _is_iterator(value):
            return [self(item, path, depth + 1) for _, item in zip(range(64), value, strict=False)]
        return value

    def _module(self, module: nn.Module) -> Any:
        if self.writes:
            by_id = {id(m): name for name, m in self.model.named_modules()}
            found = by_id.get(id(module))
            if found is None and isinstance(module, nn.Sequential) and len(module):
                found = by_id.get(id(module[0]))
            self.paths.append(found)
        else:
            found = self.paths[self.next] if self.next < len(self.paths) else None
            self.next += 1
        inputs = self.recorded(found)
        return None if inputs is None else module(*inputs[0], **inputs[1])


def _is_iterator(value: Any) -> bool:
    return hasattr(value, "__next__") and hasattr(value, "__iter__")


def _awaited(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing."""
    try:
        while True:
            coroutine.send(None)
    except StopIteration as stop:
        return stop.value
