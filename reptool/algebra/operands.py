"""What laws do to their operands first: the same axes, the same channels read; and the sizes of biases, summed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from reptool.algebra.kernel import Kernel
from reptool.refusal import Code, Refusal


def unify_axes(kernels: Sequence[Kernel]) -> list[Kernel] | Refusal:
    """The kernels over the same number of spatial axes."""
    counts = {len(k.axes) for k in kernels if k.axes is not None}
    if len(counts) > 1:
        return Refusal(Code.LAYOUT, f"kernels over {' and '.join(map(str, sorted(counts)))} spatial axes")
    return [k.with_axes(counts.copy().pop()) for k in kernels] if counts else list(kernels)


def unify_inputs(kernels: Sequence[Kernel]) -> list[Kernel] | Refusal:
    """The kernels that read the same number of channels."""
    counts = {k.in_channels for k in kernels if k.in_channels is not None}
    if len(counts) > 1:
        return Refusal(Code.CHANNELS, f"branches that read {' and '.join(map(str, sorted(counts)))} channels")
    return [k.with_channels(counts.copy().pop()) for k in kernels] if counts else list(kernels)


def terms_of(kernel: Kernel) -> Tensor | None:
    """The sizes of the terms that a bias is the sum of, one for each row."""
    if kernel.bias is None:
        return None
    return kernel.bias.abs() if kernel.bias_terms is None else kernel.bias_terms


def total(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of what there is of them."""
    given = [p for p in parts if p is not None]
    return reduce(torch.add, given) if given else None
