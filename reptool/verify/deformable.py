"""Verification of deformable convolutions: their operations on made-up values, offsets and masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from reptool.algebra.kernel import Kernel
from reptool.ir.ops import Affine
from reptool.lift.layers.deformable import BIAS, WEIGHT
from reptool.verify.originals import Originals

Values = tuple[Tensor, Tensor | None]
_SIZES = ((9, 8), (7, 11))


def is_deformable(kernel: Kernel) -> bool:
    """Whether a kernel stands for a layer that reads where data says."""
    return kernel.transposed is not None and len(kernel.transposed) == 6


def compared(
    region: Any, kernel: Kernel, ops: dict[fx.Node, Any], originals: Originals, layers: tuple[Values, ...]
) -> Iterator[tuple[tuple[int, int], Tensor, list[Tensor], float]]:
    """For each size: the size, the region's value, what each of these weights gives instead, and the largest term.

    Args:
        region: its root, its value and its operations.
        kernel: its kernel.
        ops: the operations of the trace.
        originals: runs them.
        layers: weights and biases; the last pair is that of the terms.
    """
    assert kernel.transposed is not None and kernel.in_channels is not None
    node = next(n for n in region.form.ops if isinstance(ops[n], Affine) and ops[n].beside)
    taps, _, padding, stride, dilation, _ = kernel.transposed
    generator = torch.Generator().manual_seed(0)
    position = originals.reads.position
    for size in _SIZES:
        each = zip(size, taps, stride, padding, dilation, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in each]
        count = 1 if type(node.args[12]) is not int else node.args[12]
        if min(out) < 1:
            continue

        def made(*shape: int) -> Tensor:
            return torch.randn(2, *shape, dtype=torch.float64, generator=generator)

        x, points = made(kernel.in_channels, *size), count * taps[0] * taps[1]
        memo: dict[fx.Node, Any] = {region.root: x}
        for value, channels in zip(ops[node].beside, (2 * points, points), strict=False):
            memo[value] = made(channels, *out)
        sampled = dict(memo)
        with torch.no_grad():
            for inner in sorted(region.form.ops, key=position.__getitem__):
                memo[inner] = originals.run(inner, memo)
            got = [_with(node, originals, dict(sampled), w, b) for w, b in layers[:-1]]
            terms = {k: v.abs() if v is x else v for k, v in sampled.items()}
            scale = float(_with(node, originals, terms, *layers[-1]).abs().max())
        yield size, memo[region.value], got, scale + float(memo[region.value].abs().max())


def _with(node: fx.Node, originals: Originals, memo: dict[fx.Node, Any], weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator with other values."""
    args = list(originals.arguments(node, memo)[0])
    args[WEIGHT] = weight
    args[BIAS] = weight.new_zeros(len(weight)) if bias is None else bias
    found: Tensor = originals.facts.recorder.known.run(node, tuple(args), {})
    return found
