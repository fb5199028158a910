"""Paradigm 3: parallel convolutions concatenated along the channels.

::

    cat_i (W_i * x + b_i)  =  cat_i(W_i) * x + cat_i(b_i)

Domain: kernels on one lattice with equal strides, extents and border mode. Parts that read consecutive, disjoint
slices with equal widths stay grouped; others are dense. Refused elsewhere: `stride`, `extent`, `border-mode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def branch_concat(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of parallel convolutions of one input whose outputs are concatenated.

    Args:
        weights: tensors ``[O_i, C, *K]`` that agree but for O_i; never modified.
        biases: one ``[O_i]`` or None for each.

    Returns:
        ``[sum O_i, C, *K]`` and ``[sum O_i]`` (None when every bias is None).

    Raises:
        InputError: nothing given, counts differ, or shapes differ beyond the first axis.

    >>> w, b = branch_concat([torch.ones(1, 2, 3), torch.ones(3, 2, 3)], [None, torch.ones(3)])
    >>> tuple(w.shape), b.tolist()
    ((4, 2, 3), [0.0, 1.0, 1.0, 1.0])
    """
    if not weights or len(weights) != len(biases):
        raise InputError(f"{len(weights)} weights and {len(biases)} biases: give one bias (or None) for each weight")
    shapes = {tuple(w.shape[1:]) for w in weights}
    if len(shapes) > 1:
        raise InputError(f"weights of different shapes {sorted(shapes)}: align them first with `align_kernels`")
    weight = torch.cat(list(weights))
    if all(b is None for b in biases):
        return weight, None
    return weight, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
