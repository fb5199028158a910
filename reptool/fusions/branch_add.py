"""Paradigm 2: parallel convolutions of one input, added.

::

    sum_i (W_i * x + b_i)  =  (sum_i W_i) * x + sum_i b_i

Domain: kernels on one lattice of taps (see `kernel_size` for different ones) with equal strides, equal
extents and one border mode. Refused elsewhere: `stride`, `extent` (a size-1 map would broadcast silently),
`border-mode`, `channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def branch_add(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the sum of parallel convolutions with kernels of one shape.

    Args:
        weights: tensors of one shape ``[O, C/groups, *K]``; never modified.
        biases: one ``[O]`` or None for each weight.

    Returns:
        The summed weight, and the summed bias (None when every bias is None).

    Raises:
        InputError: nothing given, counts differ, or shapes differ.

    >>> w, b = branch_add([torch.ones(1, 1, 3, 3)] * 2, [None, torch.ones(1)])
    >>> w.sum().item(), b.item()
    (18.0, 1.0)
    """
    if not weights or len(weights) != len(biases):
        raise InputError(f"{len(weights)} weights and {len(biases)} biases: give one bias (or None) for each weight")
    shapes = {tuple(w.shape) for w in weights}
    if len(shapes) > 1:
        raise InputError(f"weights of different shapes {sorted(shapes)}: align them first with `align_kernels`")
    given = [b for b in biases if b is not None]
    weight = reduce(torch.add, weights[1:], weights[0].clone())
    return weight, reduce(torch.add, given[1:], given[0].clone()) if given else None
