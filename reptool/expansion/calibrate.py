"""Statistics for the norms of new blocks, measured on the model the blocks will stand in.

The original model runs in eval mode, so that every block sees the inputs it will see; beside each
convolution its block runs in training mode and averages its statistics over all batches. Then the blocks are
balanced again, and the norm of each main branch takes the statistics of what it normalizes now, with weights
that leave its output as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import BNAndPad
from reptool.errors import InputError
from reptool.expansion.blocks.adapter import Adapter
from reptool.expansion.inherit import restate
from reptool.expansion.where import Conv
from reptool.models.copies import full_copy

CONSTANT = 1e-6
"""A variance below this part of a norm's eps is that of rounding; a training step sees none of it."""
Batches = Tensor | Iterable[Any]


def calibrate(
    model: nn.Module,
    blocks: Mapping[str, nn.Module],
    norms: Mapping[str, _BatchNorm | None],
    adapter: Adapter,
    batches: Batches,
    fixed: bool,
) -> None:
    """Set the statistics of `blocks`, which replace the convolutions of the same paths in `model`.

    Args:
        model: the original, left as it is.
        blocks: by path of the convolution.
        norms: what each block took over.
        adapter: made the blocks.
        batches: one input, or several; each a tensor, a tuple of arguments or a dict of keyword arguments.
        fixed: whether the blocks keep computing what they compute (`preserve`).

    Raises:
        InputError: no batches.
    """
    inputs = [batches] if isinstance(batches, Tensor) else list(batches)
    if not inputs:
        raise InputError("calibrate was given no batches; pass a tensor or a list of inputs.")
    runner = full_copy(model).eval()
    for block in blocks.values():
        block.eval()
    own = {path: adapter.main_norm(block) for path, block in blocks.items()}
    inner = {path: adapter.inner_norms(block) for path, block in blocks.items()}
    kept = [norm for norm in (*own.values(), *(n for found in inner.values() for n in found)) if norm is not None]
    mains = {id(norm) for norm in kept} if fixed else set()
    others = {
        path: [m for m in block.modules() if isinstance(m, _BatchNorm) and id(m) not in mains]
        for path, block in blocks.items()
    }
    _measure(runner, blocks, [norm for found in others.values() for norm in found], inputs)
    if not fixed:
        return
    for path, block in blocks.items():
        adapter.rebalance(block, _conv(model, path), norms[path])
    for depth in range(max(map(len, inner.values()), default=0)):
        _restate(runner, blocks, {path: found[depth] for path, found in inner.items() if depth < len(found)}, inputs)
    _restate(runner, blocks, {path: norm for path, norm in own.items() if norm is not None}, inputs)


def _restate(
    runner: nn.Module, blocks: Mapping[str, nn.Module], moved: dict[str, _BatchNorm], inputs: list[Any]
) -> None:
    """Measure one norm of each block; it keeps computing what it does."""
    seen = {path: copy.deepcopy(norm) for path, norm in moved.items()}
    measuring = {path: _with_norm(blocks[path], moved[path], seen[path]) for path in moved}
    with _averaging(list(seen.values())):
        _run(runner, measuring, inputs)
    for path, norm in moved.items():
        mean, variance = seen[path].running_mean, seen[path].running_var
        assert mean is not None
        assert variance is not None
        restate(norm, mean, variance)


def _measure(runner: nn.Module, blocks: Mapping[str, nn.Module], norms: list[_BatchNorm], inputs: list[Any]) -> None:
    """Set the statistics of `norms`; those behind a `BNAndPad`, which pads with its own, in a second run."""
    inner = {id(m.bn) for block in blocks.values() for m in block.modules() if isinstance(m, BNAndPad)}
    if norms:
        with _averaging(norms):
            _run(runner, blocks, inputs)
    if inner:
        with _averaging([norm for norm in norms if id(norm) not in inner]), _batchwise(norms, inner):
            _run(runner, blocks, inputs)


def _conv(model: nn.Module, path: str) -> Conv:
    found: Any = model.get_submodule(path)
    return found


def _with_norm(block: nn.Module, norm: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of `block` that shares everything but `norm`, in whose place is `other`."""
    memo: dict[int, Any] = {id(t): t for t in (*block.parameters(), *block.buffers())}
    memo[id(norm)] = other
    return copy.deepcopy(block, memo)


@contextmanager
def _batchwise(norms: list[_BatchNorm], chosen: set[int]) -> Any:
    """Let the `chosen` norms normalize by batch, their statistics staying what they are."""
    found = [(norm, norm.momentum) for norm in norms if id(norm) in chosen]
    for norm, _ in found:
        norm.momentum, norm.training = 0.0, True
    try:
        yield
    finally:
        for norm, momentum in found:
            norm.momentum, norm.training = momentum, False


@contextmanager
def _averaging(norms: list[_BatchNorm]) -> Any:
    """Let `norms` average the statistics of all batches they see, with equal weights.

    A channel that was constant but for rounding gets variance 1: there is nothing to normalize, and
    1 / sqrt(eps) would only amplify that.
    """
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.training = False
            assert norm.running_var is not None
            norm.running_var[norm.running_var < CONSTANT * norm.eps] = 1.0


@torch.no_grad()
def _run(model: nn.Module, blocks: Mapping[str, nn.Module], inputs: list[Any]) -> None:
    """Run `model`, and each block on what its convolution reads."""
    handles = []
    for path, block in blocks.items():
        conv = model.get_submodule(path)
        handles.append(conv.register_forward_pre_hook(lambda _, args, b=block: _keep(b, args)))
    try:
        for given in inputs:
            if isinstance(given, Mapping):
                model(**given)
            elif isinstance(given, tuple):
                model(*given)
            else:
                model(given)
    finally:
        for handle in handles:
            handle.remove()


def _keep(block: nn.Module, args: Any) -> None:
    block(*args)
