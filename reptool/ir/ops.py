"""`Op`: a node as the planner sees it: an affine map, a sum, a concatenation, a view, or parts of one of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from reptool.algebra.kernel import Kernel
from reptool.algebra.resampling import Resampling
from reptool.algebra.work import Work
from reptool.refusal import Refusal


@dataclass(eq=False)
class Affine:
    """``node = kernel(source)``.

    Args:
        source: the value read.
        shape: the kernel without values.
        load: makes the kernel with its values, in float64.
        owners: paths of the modules and names of the tensors whose values it holds.
        layer: whether this is a convolution or linear layer (its multiplications count).
        paradigm: the name under which `rules=` selects it.
        cost: multiplications per output element beside those of a layer.
        rank_guard: the rank of the input for which alone this is right, None when it is known.
        computed: whether the weight is computed anew at every call.
        work: what it executes as it stands, where that is not what its kernel says.
        via: the node that is read, where that is no map of `source` by itself (`Pieces`).
        beside: values that it also reads, and that stay: it is a map of `source` alone, whatever that consists of.
        rule: the name of the user's rule that says so, '' for operations of torch's own.
        inner: operations between `source` and it that are no maps by themselves (`Inner`).
        read: what it reads of them.
        resampling: the same as a map that may stand on either side of pointwise layers.
        moves: whether it is nothing but `resampling`, and `shape` tells of its channels alone.
        left: why it is not more than that, for a layer that reads it.
    """

    source: fx.Node
    shape: Kernel
    load: Callable[[], Kernel]
    owners: tuple[str, ...] = ()
    layer: bool = False
    paradigm: str = "identity"
    cost: int = 0
    rank_guard: int | None = None
    computed: bool = False
    work: Work | None = None
    via: fx.Node | None = None
    beside: tuple[fx.Node, ...] = ()
    rule: str = ""
    inner: tuple[fx.Node, ...] = ()
    read: tuple[fx.Node, ...] = ()
    resampling: Resampling | None = None
    moves: bool = False
    left: Refusal | None = None

    @property
    def sources(self) -> list[fx.Node]:
        """The values read."""
        if self.read:
            return list(self.read)
        return [self.source if self.via is None else self.via]


class HandedOn(Affine):
    """A norm whose scale and shift stand elsewhere: it gives what it reads."""


@dataclass(eq=False)
class Unmoved(Affine):
    """A view to the sizes that a value has: it gives what it reads.

    Args:
        follows: whether it reads its sizes from this very value, so that it is the identity of any other one, too.
    """

    follows: bool = False


@dataclass(eq=False)
class Sum:
    """``node = sum of sources``, each through a pointwise map of its own (None: as it is)."""

    sources: list[fx.Node]
    maps: list[Kernel | None]
    owners: tuple[str, ...] = ()
    paradigm: str = "branch_add"


@dataclass(eq=False)
class Concat:
    """``node = concatenation of sources along the channels``, for values with `axes` axes behind the channel axis."""

    sources: list[fx.Node]
    axes: int
    owners: tuple[str, ...] = ()
    paradigm: str = "branch_concat"


@dataclass(eq=False)
class Fill:
    """An item assignment that overwrites part of a padding with a constant.

    Args:
        source: the value before.
        whole: once the whole padding is overwritten: the value padded, and the padding by that constant.
    """

    source: fx.Node
    whole: Affine | None = None
    owners: tuple[str, ...] = ()
    paradigm: str = "padding"

    @property
    def sources(self) -> list[fx.Node]:
        """The value before."""
        return [self.source]


@dataclass(eq=False)
class View:
    """``node = source`` with its axes arranged otherwise.

    Args:
        source: the value read.
        moves: where the axis with so many behind it goes.
        sizes: those of the axes behind it (`lift.layout.sizes.Size`), None where they are not worked out.
        names: axes behind which it names the number of channels: there are as many at every call.
        given: the sizes of what it reads, and those that it is given (-1: what is left), where it is given sizes.
    """

    source: fx.Node
    moves: dict[int, int]
    sizes: Sequence[Any] | None = None
    names: frozenset[int] = frozenset()
    given: tuple[Sequence[Any], Sequence[Any]] | None = None
    owners: tuple[str, ...] = ()
    paradigm: str = "view"

    @property
    def sources(self) -> list[fx.Node]:
        """The value read."""
        return [self.source]


@dataclass(eq=False)
class Stack:
    """Values side by side along the new axis `dim`: no map of anything by itself, but see `Reduced`."""

    sources: list[fx.Node]
    dim: int
    owners: tuple[str, ...] = ()
    paradigm: str = "branch_add"


@dataclass(eq=False)
class Reduced:
    """The sum or mean of what a `Stack` holds, along the axis along which it was stacked.

    Args:
        source: the stack.
        whole: the sum of its parts.
    """

    source: fx.Node
    whole: Sum
    owners: tuple[str, ...] = ()
    paradigm: str = "branch_add"

    @property
    def sources(self) -> list[fx.Node]:
        """The value read."""
        return [self.source]


@dataclass(eq=False)
class Pieces:
    """A value cut into pieces, or with an axis split: no map by itself, what is made of it may be (see `Affine.via`).

    Args:
        source: the value that is cut.
    """

    source: fx.Node
    owners: tuple[str, ...] = ()
    paradigm: str = "slice"

    @property
    def sources(self) -> list[fx.Node]:
        """The value read."""
        return [self.source]


@dataclass(eq=False)
class Inner(Pieces):
    """An operation inside of a segment, which is a map as a whole (see `Affine.inner`).

    Args:
        source: the first of the values that it reads.
        others: the others.
    """

    others: tuple[fx.Node, ...] = ()

    @property
    def sources(self) -> list[fx.Node]:
        """The values read."""
        return [self.source, *self.others]


Op = Affine | Sum | Concat | View | Fill | Stack | Reduced | Pieces
