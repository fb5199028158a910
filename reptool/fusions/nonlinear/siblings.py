"""Parallel layers of one input with the same activation behind each: one layer, one activation.

An activation `a` that treats every value by itself commutes with concatenation along the channels::

    cat_i a(W_i * x + b_i)  =  a( cat_i(W_i) * x + cat_i(b_i) )

so that ``a(W_i * x + b_i)`` is a slice of the channels of the right side. As many multiplications as before, and fewer
operations. Domain: layers of one geometry without groups, the same activation behind all. Refused elsewhere: `extent`,
`channels`, `distribute`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from torch import Tensor

from reptool.fusions.branch_concat import branch_concat
from reptool.models.tensor_arguments import takes_tensors


@takes_tensors
def merge_siblings(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None, list[slice]]:
    """One layer for parallel layers of one input, and which of its channels are those of each.

    Args:
        weights: ``[O_i, C, *K]`` of one geometry; never modified.
        biases: one ``[O_i]`` or None for each.

    Returns:
        ``[sum O_i, C, *K]``, ``[sum O_i]`` or None, and the slice of its channels for each.

    Raises:
        InputError: nothing given, counts differ, or shapes differ beyond the first axis.

    >>> import torch
    >>> weight, bias, rows = merge_siblings([torch.ones(2, 3), torch.zeros(1, 3)], [None, None])
    >>> tuple(weight.shape), rows
    ((3, 3), [slice(0, 2, None), slice(2, 3, None)])
    """
    weight, bias = branch_concat(weights, biases)
    ends = accumulate((len(w) for w in weights), initial=0)
    return weight, bias, [slice(a, b) for a, b in pairwise(ends)]
