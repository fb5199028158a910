"""Inputs that a block runs on, found by trying what its layers read, where nobody says; inputs of other sizes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reptool.ir.walk import Inputs, call, map_tensors, named_tensors
from reptool.models.copies import full_copy

OTHER_SIZES = ((13, 10), (16, 19), (8, 9), (5, 7), (2, 3), (1, 1))
SIZES = ((12, 9, 7), (16, 16, 16), (32, 36, 8), (64, 64, 8))


def example_for(module: nn.Module) -> Inputs:
    """An input that `module` runs on: for the layer that it calls first, whichever of its layers that is.

    Args:
        module: has a convolution, linear layer or normalization; it is run on copies.

    Raises:
        ValueError: it has none, or runs on nothing that one of its layers reads.

    >>> tuple(example_for(nn.Sequential(nn.Conv2d(3, 8, 3))).shape)
    (2, 3, 12, 9)
    """
    shapes = list(dict.fromkeys(_shapes(module)))
    if not shapes:
        raise ValueError("no convolution, linear layer or normalization to make inputs for: give `example_inputs`")
    taken = _taken(module)
    tried, dtype = full_copy(module).eval(), _dtype(module)
    error: Exception | None = None
    for shape in shapes:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(taken)]
        inputs: Inputs = made[0] if taken == 1 else tuple(made)
        try:
            call(tried, inputs)
        except Exception as raised:  # whatever the block says against it
            error = error or raised
            continue
        return inputs
    shown = ", ".join(str(shape) for shape in shapes[:3])
    raise ValueError(f"the block runs on none of {shown}, ... ({error}): give `example_inputs`") from error


def _shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """What the layers read, the module's own number of channels and its first layer first."""
    own: Any = getattr(module, "in_channels", None)
    parts = list(module.modules())
    for sizes, part in itertools.product(SIZES, parts):
        for rank in _ranks(part):
            for read in dict.fromkeys(c for c in (own, _channels(part)) if isinstance(c, int)):
                yield (2, read, *sizes[:rank])
        if isinstance(part, nn.Linear):
            yield from ((3, part.in_features), (2, 5, part.in_features))


def _ranks(part: nn.Module) -> tuple[int, ...]:
    if isinstance(part, nn.modules.conv._ConvNd):
        return (len(part.kernel_size),)
    kinds = {nn.BatchNorm1d: (1, 0), nn.BatchNorm2d: (2,), nn.BatchNorm3d: (3,), nn.SyncBatchNorm: (2, 1, 3)}
    return next((ranks for kind, ranks in kinds.items() if isinstance(part, kind)), ())


def _channels(part: nn.Module) -> Any:
    return getattr(part, "in_channels", None) or getattr(part, "num_features", None)


def _taken(module: nn.Module) -> int:
    """How many arguments a forward has to be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in kinds and p.default is p.empty for p in parameters))


def _dtype(module: nn.Module) -> torch.dtype:
    tensors: Iterator[Tensor] = itertools.chain(module.parameters(), module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


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
    floating = [t for _, t in named_tensors(inputs) if t.is_floating_point() and t.dim() >= 2]
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
        map_tensors(inputs, partial(resized, sizes=(*sizes, *sizes), wanted=2 + count % 2))
        for count, sizes in enumerate(OTHER_SIZES if axes else OTHER_SIZES[:2])
    ]
