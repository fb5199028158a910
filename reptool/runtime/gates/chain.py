"""What a gate knows: the calls that a layer may run in, and where the modules of its region are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Path = tuple[str, ...]
KIND = ""
"""The entry of this mark that is the full name of the module's class."""
WITHIN = "_reptool_within"
"""The mark of a module whose values are inside of a region: another one in its place is not what was fused.

It holds what the attributes of a module of torch's were by which it rearranges them, otherwise True.
"""


@dataclass(frozen=True)
class Link:
    """One call of the chain.

    Args:
        path: of its module, below the module of the lowest call that holds the region; None where it is elsewhere.
        kind: the full name of the module's class.
        method: that runs.
        own: whether the method was put on the instance.
        put: which other methods of its class were; None in pickles that do not say.
    """

    path: Path | None
    kind: str
    method: str
    own: bool = False
    put: frozenset[str] | None = None


@dataclass(frozen=True)
class Chain:
    """The calls from a layer up to the lowest one that holds the region.

    Args:
        links: innermost first; without any, nothing runs the layer any more.
        place: of the layer, as `Link.path`.
        absorbed: places of the region's absorbed modules.
        hooks: places of modules whose values are inside of the region, and how many hooks they have.
        series: the modules of the lowest call that the region is, where they run one behind the other.
        slots: places of the fused layers that do its work, as far as they have gates.
        written: places of the region's modules whose methods were written anew.
        marked: whether modules whose values are inside of the region say so; in pickles of reptool 0.1 they do not.
        between: methods that lead from one of these calls to the next; others were not traced. None allows all.
    """

    links: tuple[Link, ...]
    place: Path | None
    absorbed: tuple[Path, ...] = ()
    hooks: tuple[tuple[Path, int], ...] = ()
    series: tuple[str, ...] | bool = ()  # in pickles of reptool 0.1 whether there are such
    slots: tuple[Path, ...] = ()
    written: tuple[Path, ...] = ()
    marked: bool = False
    between: frozenset[Link] | None = None


@dataclass(frozen=True)
class Gate:
    """The calls that a layer may run in.

    Args:
        name: the layer's path in the model.
        region: paths of the modules and tensors whose work it does.
        chains: any of these.
        norms: how many norms are in the region.
        geometry: what the layer's attributes say of its window.
        ranks: numbers of axes that the norms in it take; none where they take any.
        bare: parameters that a norm lost to the layers which read it.
        wide: the dtype of what the layer took up and no conversion of the model reaches.
        kind: the full name of the layer's class.
        scaled: whether it took up something in front of the original's first layer, which takes other dtypes than this.
    """

    name: str
    region: tuple[str, ...]
    chains: tuple[Chain, ...]
    norms: int = 0
    geometry: tuple[tuple[str, Any], ...] = ()
    ranks: frozenset[int] = frozenset()
    bare: tuple[str, ...] = ()
    wide: torch.dtype | None = None
    kind: str = ""
    scaled: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Gate:
        return self
