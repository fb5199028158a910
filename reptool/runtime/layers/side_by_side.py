"""`SideBySide`: a convolution of values of several resolutions side by side, without bringing them to one.

::

    W * cat(U_1(x_1), U_2(x_2), ...)  =  sum_i  (W_i * U_i)(x_i)

for nearest upsampling `U_i`. Each term is one layer: a transposed convolution at a low resolution, or a convolution.
The code around it hands on the values as they are, by `side_by_side`, which sees to it that upsampled they would fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.errors import SpecializedError


def side_by_side(
    values: Sequence[Tensor], factors: Sequence[Sequence[int]], sizes: Sequence[Any]
) -> tuple[Tensor, ...]:
    """What a concatenation of upsampled values would hold, as the values before that.

    Args:
        values: ``[N, C_i, *S_i]`` each.
        factors: how often each position of each value is repeated, per axis.
        sizes: what each upsampling is told to give, one number or one per axis; None where it is told factors.

    Raises:
        SpecializedError: upsampled by these factors, a value has another number of axes or another size than it is
            told, or than the first.

    >>> low, high = torch.zeros(1, 4, 3, 3), torch.zeros(1, 2, 6, 6)
    >>> [tuple(v.shape) for v in side_by_side((low, high), ((2, 2), (1, 1)), ((6, 6), None))]
    [(1, 4, 3, 3), (1, 2, 6, 6)]
    """
    if (graph := _graph_of(values)) is not None:  # which calls this as a whole
        made: Any = graph.create_proxy("call_function", side_by_side, (tuple(values), tuple(factors), tuple(sizes)), {})
        return made
    first: list[int] | None = None
    for value, own, size in zip(values, factors, sizes, strict=True):
        if value.dim() != len(own) + 2:
            raise SpecializedError(f"deploy() made a layer of values of {len(own) + 2} axes, and got {value.dim()}")
        given = [value.shape[0], *(n * f for n, f in zip(value.shape[2:], own, strict=True))]
        told = given[1:] if size is None else list(size) if isinstance(size, (tuple, list)) else [size] * len(own)
        if len(told) == 1:
            told = told * len(own)
        first = given if first is None else first
        if given[1:] != told or given != first:
            raise SpecializedError(
                f"deploy() made a layer of a value upsampled by {tuple(own)}: of {tuple(value.shape)} it would have "
                f"the size {tuple(given[1:])}, where {tuple(told)} is asked for beside {tuple(first[1:])}. Deploy with "
                "inputs of sizes that are such multiples, or exclude the layer (deploy(model, exclude=...))"
            )
    return tuple(values)


def _graph_of(values: Sequence[Any]) -> Any:
    """What writes the graph in which values are symbols; None where they are none."""
    return next((v.tracer for v in values if isinstance(v, fx.Proxy)), None)


class SideBySide(nn.Module):
    """The sum of one layer for each resolution.

    Args:
        layers: one for each part.
        which: the places of the values that each reads, side by side.

    >>> conv = nn.Conv2d(6, 8, 1)
    >>> layer = SideBySide([nn.ConvTranspose2d(4, 8, 2, 2), nn.Conv2d(2, 8, 1)], [(0,), (1,)])
    >>> layer((torch.zeros(1, 4, 3, 3), torch.zeros(1, 2, 6, 6))).shape
    torch.Size([1, 8, 6, 6])
    """

    def __init__(self, layers: Sequence[nn.Module], which: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(layers)
        self.which = tuple(which)

    def forward(self, values: tuple[Tensor, ...]) -> Tensor:
        """Of ``[N, C_i, *S_i]`` each, ``[N, O, *S]``."""
        out: Tensor | None = None
        for which, layer in zip(self.which, self.parts, strict=True):
            read = values[which[0]] if len(which) == 1 else torch.cat([values[i] for i in which], 1)
            made = layer(read)
            out = made if out is None else out + made
        assert out is not None
        return out
