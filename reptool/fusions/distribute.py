"""Paradigm 10: a scale and shift per channel behind a sum, a concatenation or a slice, given to what stands in front.

::

    scale * sum_i y_i + shift    =  sum_i (scale * y_i + shift_i)    with shift_j = shift for one j, 0 elsewhere;
                                                                 or shift_i = shift / n for all n of them
    scale * concat_i(y_i) + shift  =  concat_i(scale[c_i] * y_i + shift[c_i])    with c_i the channels of part i
    scale * y[c] + shift  =  (scale' * y + shift')[c]    with scale' = scale and shift' = shift on c, 1 and 0 elsewhere
    scale * P(y) + shift  =  P(scale' * y + shift')    with the numbers of each channel for all it is made of

P treats all channels alike: linear along the positions (a shift needs weights that add up to one for every result),
or taking a largest value (a scale must not be negative). In the other direction the numbers go to what is made of each
channel (positions that `flatten` makes channels of).

Domain: parts of any inputs, also broadcast along positions, since one part alone gets the shift; each part then takes
its share as it takes a norm behind it (see `conv_bn`). A slice of channels, each taken once, of which nothing else is
read; whoever reads other channels sees no change. Refused elsewhere: a part that ends in no layer, or that is also
read by itself (`distribute`, `read-elsewhere`); then no part is changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reptool.errors import InputError
from reptool.models.tensor_arguments import takes_tensors

Share = tuple[Tensor, Tensor | None]


@takes_tensors
def distribute_over_sum(scale: Tensor, shift: Tensor | None, parts: int, at: int | None = 0) -> list[Share]:
    """Shares of a scale and shift behind a sum: the scale for each summand, the shift for one, or in equal parts.

    Args:
        scale: ``[C]``; never modified.
        shift: ``[C]`` or None for zeros.
        parts: number of summands.
        at: which one gets the shift; None where each gets an equal part (summands that one layer computes).

    Returns:
        For each summand its scale ``[C]`` and its shift (None for zeros).

    Raises:
        InputError: there is no such summand.

    >>> import torch
    >>> [(s.item(), t if t is None else t.item()) for s, t in distribute_over_sum(torch.ones(1), torch.ones(1), 2)]
    [(1.0, 1.0), (1.0, None)]
    """
    if at is None:
        return [(scale, None if shift is None else shift / parts)] * parts
    if not 0 <= at < parts:
        raise InputError(f"summand {at} of {parts}: `at` counts from 0")
    return [(scale, shift if i == at else None) for i in range(parts)]


@takes_tensors
def distribute_over_concat(scale: Tensor, shift: Tensor | None, widths: Sequence[int]) -> list[Share]:
    """Shares of a scale and shift behind a concatenation: for each part the slice that belongs to its channels.

    Args:
        scale: ``[sum of widths]``; never modified.
        shift: as many, or None for zeros.
        widths: number of channels of each part.

    Returns:
        For each part its scale ``[width]`` and its shift (None for zeros).

    Raises:
        InputError: the widths do not add up to the channels.

    >>> import torch
    >>> [s.tolist() for s, _ in distribute_over_concat(torch.tensor([1.0, 2.0, 3.0]), None, [1, 2])]
    [[1.0], [2.0, 3.0]]
    """
    for given in (scale, shift):
        if given is not None and len(given) != sum(widths):
            raise InputError(f"parts of {list(widths)} channels do not add up to the {len(given)} of scale and shift")
    shifts: Sequence[Tensor | None] = [None] * len(widths) if shift is None else shift.split(list(widths))
    return list(zip(scale.split(list(widths)), shifts, strict=True))


def distribute_over_slice(scale: Tensor, shift: Tensor | None, channels: int, rows: Sequence[int]) -> Share:
    """Share of a scale and shift behind a slice: the same on the channels of the slice, nothing on the others.

    Args:
        scale: ``[len(rows)]``; never modified.
        shift: as many, or None for zeros.
        channels: number of channels that are sliced.
        rows: the channels of the slice, each once.

    Returns:
        The scale and shift (None for zeros) of all channels.

    Raises:
        InputError: a channel is taken twice, or there are not as many as the scale and shift have.

    >>> import torch
    >>> [t.tolist() for t in distribute_over_slice(torch.tensor([2.0]), torch.tensor([3.0]), 3, [1])]
    [[1.0, 2.0, 1.0], [0.0, 3.0, 0.0]]
    """
    taken = list(rows)
    if len(set(taken)) != len(taken) or any(t is not None and len(t) != len(taken) for t in (scale, shift)):
        raise InputError(f"channels {taken} for a scale and shift of {len(scale)}: one for each, and each once")
    whole, moved = scale.new_ones(channels), None if shift is None else shift.new_zeros(channels)
    whole[taken] = scale
    if shift is not None and moved is not None:
        moved[taken] = shift
    return whole, moved


def distribute_over_blocks(scale: Tensor, shift: Tensor | None, times: int, tiled: bool = False) -> Share:
    """Share of a scale and shift of a value that has several channels for each of theirs.

    Args:
        scale: ``[C]``; never modified.
        shift: as many, or None for zeros.
        times: how many channels there are for each one.
        tiled: whether those of one channel are C apart, and not next to each other.

    Returns:
        The scale and shift (None for zeros) of ``C * times`` channels.

    Raises:
        InputError: `times` is no positive number.

    >>> import torch
    >>> distribute_over_blocks(torch.tensor([2.0, 3.0]), None, 2)[0].tolist()
    [2.0, 2.0, 3.0, 3.0]
    >>> distribute_over_blocks(torch.tensor([2.0, 3.0]), None, 2, tiled=True)[0].tolist()
    [2.0, 3.0, 2.0, 3.0]
    """
    if times < 1:
        raise InputError(f"{times} channels for each one: at least 1 is needed")

    def spread(vector: Tensor) -> Tensor:
        return vector.repeat(times) if tiled else vector.repeat_interleave(times)

    return spread(scale), None if shift is None else spread(shift)
