"""Mutable state: what a model changes in itself while it runs in eval mode (observers, counters, averages)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Held = dict[str, tuple[Tensor, int, Tensor | None]]


def held_by(model: nn.Module) -> Held:
    """What a model's buffers hold, and which version of each parameter it has.

    Args:
        model: any module.
    """
    out: Held = {n: (p, _version(p), None) for n, p in model.named_parameters()}
    out.update({n: (b, _version(b), b.detach().clone()) for n, b in model.named_buffers()})
    return out


def changed_since(before: Held, model: nn.Module) -> list[str]:
    """Paths of the parameters and buffers that are not what they were; one that was made since is none of them.

    Args:
        before: from `held_by`.
        model: the same module, after it ran.

    >>> model = nn.BatchNorm1d(2)
    >>> before = held_by(model)
    >>> _ = model(torch.randn(4, 2))
    >>> changed_since(before, model)
    ['running_mean', 'running_var', 'num_batches_tracked']
    """
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [n for n, tensor in now.items() if n in before and not _same(before[n], tensor)]


def _same(before: tuple[Tensor, int, Tensor | None], now: Tensor) -> bool:
    tensor, version, values = before
    if values is None or values.is_meta or now.is_meta:
        return now is tensor and _version(now) == version
    return values.shape == now.shape and values.dtype == now.dtype and _equal(values, now)


def _equal(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    return bool(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))


def _version(tensor: Any) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def modules_of(paths: list[str]) -> str:
    """The modules that hold some tensors, with the tensors: ``'observer' (min_val, max_val)``."""
    held: dict[str, list[str]] = {}
    for path in paths:
        owner, _, name = path.rpartition(".")
        held.setdefault(owner or "<root>", []).append(name)
    return ", ".join(f"{owner!r} ({', '.join(names)})" for owner, names in held.items())
