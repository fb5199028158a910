"""Channels between two layers that hold nothing, or that nobody reads, dropped.

With a layer `f` (``W_f, b_f``), an activation `a` that acts on each channel by itself, and a layer `g` (``W_g, b_g``),
let row `c` of ``W_f`` be zero. Then the channel is the constant ``a(b_f[c])`` at every position, and::

    b[o]  =  b_g[o] + sum_{c dead, k} W_g[o, c, k] a(b_f[c])

takes its place; a channel whose column of ``W_g`` is zero goes without a trace. Domain: two layers without groups. At
the border it is exact where `g` pads nothing, pads by repeating or reflecting, or where the constant is zero. Refused
elsewhere: zeros beside a constant (`border-bias`), groups (`channels`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors


def dead_channels(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Which channels between two layers are constant, and which nobody reads.

    Args:
        first: ``[D, C, ...]``.
        second: ``[E, D, ...]``.

    Returns:
        Two masks ``[D]``.

    >>> constant, unread = dead_channels(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0, 0.0]]))
    >>> constant.tolist(), unread.tolist()
    ([True, False], [False, True])
    """
    return (first == 0).flatten(1).all(1), (second == 0).transpose(0, 1).flatten(1).all(1)


@takes_tensors
def drop_channels(
    first: Tensor, first_bias: Tensor | None, second: Tensor, second_bias: Tensor | None, kept: Tensor, constant: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Weights and biases of two layers without some of the channels between them.

    Args:
        first: ``[D, C, *K]``; nothing that is given is modified.
        first_bias: ``[D]`` or None.
        second: ``[E, D, *K]``.
        second_bias: ``[E]`` or None.
        kept: ``[D]`` booleans, at least one of them true.
        constant: ``[D]``, what the channels that are dropped hold behind the activation.

    Returns:
        Weight and bias of the first and of the second layer.

    Raises:
        InputError: no channel is kept.

    >>> w, b = torch.tensor([[0.0], [1.0]]), torch.tensor([3.0, 0.0])
    >>> dropped = drop_channels(w, b, torch.tensor([[2.0, 1.0]]), None, torch.tensor([False, True]), b.relu())
    >>> [t.tolist() for t in dropped]
    [[[1.0]], [0.0], [[1.0]], [6.0]]
    """
    if not bool(kept.any()):
        raise InputError("all channels would be dropped; keep at least one")
    summed = second.flatten(2).sum(2) if second.dim() > 2 else second
    moved = summed[:, ~kept] @ constant[~kept].to(summed)
    bias = second_bias if not bool((moved != 0).any()) else moved if second_bias is None else second_bias + moved
    narrow = None if first_bias is None else first_bias[kept]
    return first[kept], narrow, torch.index_select(second, 1, kept.nonzero().flatten()), bias
