"""The value that says how a scale and shift cross an operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx


@dataclass(frozen=True, eq=False)
class Passage:
    """An operation that treats all channels of `source` alike.

    Args:
        source: the value read.
        moves: where the channels go: axes behind them in the source -> axes behind them in the result.
        positive: whether scales must not be negative.
        shifts: whether constants are kept.
        blocks: channels of the source of which one channel of the result is made.
        joined: axes behind the channels in the source -> whether the positions joined with them come first.
        keeps_rank: whether the result has as many axes.
    """

    source: fx.Node
    moves: Mapping[int, int]
    positive: bool = False
    shifts: bool = True
    blocks: int = 1
    joined: Mapping[int, bool] = field(default_factory=dict)
    keeps_rank: bool = True


def left_axes(rank: int, gone: set[int], kept: bool = False) -> dict[int, int]:
    """Where each axis that is not among these goes, once they have gone (or have one position, where they are kept)."""
    behind = {a: 0 if kept else sum(g > a for g in gone) for a in range(rank)}
    return {rank - 1 - a: rank - 1 - a - behind[a] for a in range(rank) if a not in gone}
