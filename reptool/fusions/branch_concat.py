"""Paradigm 3: parallel convolutions concatenated along the channels.

::

    cat_i (W_i * x + b_i)  =  cat_i(W_i) * x + cat_i(b_i)

Domain: kernels on one lattice with equal strides, extents and border mode. Parts that read consecutive, disjoint
slices with equal widths stay grouped; others are dense. Refused elsewhere: `stride`, `extent`, `border-mode`.

Parts with groups read all channels, each row those of its own group. One behind the other they are rows of a dense
kernel with zeros. Ordered group by group they stay grouped: ``interleaved``, where group `j` of the result holds the
rows of group `j` of every part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def branch_concat(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None], groups: int = 1, *, interleaved: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of parallel convolutions of one input whose outputs are concatenated.

    Args:
        weights: tensors ``[O_i, C/groups, *K]`` that agree but for O_i; never modified.
        biases: one ``[O_i]`` or None for each.
        groups: groups of every part.
        interleaved: keep the groups, and give the rows of each group together instead of those of each part.

    Returns:
        ``[sum O_i, C, *K]`` and ``[sum O_i]`` (None when every bias is None); ``[sum O_i, C/groups, *K]``, for a
        convolution of as many groups, where it is interleaved.

    Raises:
        InputError: nothing given, counts differ, shapes differ beyond the first axis, or groups divide some O_i not.

    >>> w, b = branch_concat([torch.ones(1, 2, 3), torch.ones(3, 2, 3)], [None, torch.ones(3)])
    >>> tuple(w.shape), b.tolist()
    ((4, 2, 3), [0.0, 1.0, 1.0, 1.0])
    >>> depthwise = [torch.full((2, 1, 1), 2.0), torch.full((2, 1, 1), 3.0)]
    >>> branch_concat(depthwise, [None, None], groups=2)[0][..., 0].tolist()
    [[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 3.0]]
    >>> branch_concat(depthwise, [None, None], groups=2, interleaved=True)[0].flatten().tolist()
    [2.0, 3.0, 2.0, 3.0]
    """
    if not weights or len(weights) != len(biases):
        raise InputError(f"{len(weights)} weights and {len(biases)} biases: give one bias (or None) for each weight")
    shapes = {tuple(w.shape[1:]) for w in weights}
    if len(shapes) > 1:
        raise InputError(f"weights of different shapes {sorted(shapes)}: align them first with `align_kernels`")
    if groups < 1 or any(len(w) % groups for w in weights):
        raise InputError(f"{[len(w) for w in weights]} output channels are not all divisible by {groups} groups")
    given = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
    if interleaved:
        weights, given = _by_group(weights, groups), _by_group(given, groups)
    elif groups > 1:
        weights = [_dense(w, groups) for w in weights]
    return torch.cat(list(weights)), None if all(b is None for b in biases) else torch.cat(given)


def _by_group(parts: Sequence[Tensor], groups: int) -> list[Tensor]:
    """The rows of the first group of every part, then those of the second, and so on."""
    cut = [p.chunk(groups) for p in parts]
    return [c[g] for g in range(groups) for c in cut]


def _dense(weight: Tensor, groups: int) -> Tensor:
    """A grouped weight among zeros."""
    rows, wide = len(weight) // groups, weight.shape[1]
    out = weight.new_zeros(len(weight), wide * groups, *weight.shape[2:])
    for g in range(groups):
        out[g * rows : (g + 1) * rows, g * wide : (g + 1) * wide] = weight[g * rows : (g + 1) * rows]
    return out
