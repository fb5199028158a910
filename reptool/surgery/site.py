"""`Site`: a region with its place. `Surgery`: everything that will be done to one traced module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, fx

from reptool.ir.trace import Event, Question
from reptool.plan.select import Region
from reptool.rewrite.lower import Geometry, Place
from reptool.runtime.gates.chain import Chain
from reptool.runtime.method import Method

if TYPE_CHECKING:
    from reptool.surgery.fallbacks.fallback import Keeping
    from reptool.surgery.fallbacks.fallbacks import Fallbacks


@dataclass(eq=False)
class Site:
    """One region with the place its layer goes to.

    Args:
        region: what is computed.
        carrier: the layer node whose place is taken.
        slot: module path that gets the layer; None for a functional layer in a regenerated method.
        shape: the layer's geometry.
        reuse: whether the layer object in the slot stays and only its values change.
        onpath: absorbed operations between the root and the value on the carrier's way.
        dead: absorbed operations off that way.
        names: for a functional layer, the attribute names of weight and bias on `owner`.
        owner: module path that holds a functional layer's weight.
        place: dtype, device and memory format of the layer.
        cast: the layer's weight and bias, once they are worked out.
        in_place: whether a functional layer keeps its code as well, and its tensors alone change.
        asked: the call around the region and those in it whose answers it relies on; nothing if it relies on none.
        dtypes: per call, what it asked of the dtypes of its arguments, which are guarded.
    """

    region: Region
    carrier: fx.Node
    slot: str | None
    shape: Geometry
    reuse: bool
    onpath: list[fx.Node]
    dead: list[fx.Node]
    event: Event | None = None
    names: tuple[str, str | None] = ("weight", None)
    owner: str = ""
    place: Place | None = None
    cast: tuple[Tensor, Tensor | None] | None = None
    in_place: bool = False
    asked: list[Event] = field(default_factory=list)
    dtypes: dict[Event, list[Question]] = field(default_factory=dict)


@dataclass
class Calls:
    """Calls in which a layer that changes its meaning, or an absorbed module, is right.

    Args:
        path: of the layer.
        site: its region; None where no region names it.
        lowest: path of the module whose call is the lowest that holds the region.
        chain: the calls, from the layer up to that one.
        watched: paths of modules whose values are inside of the region.
        method: of the module at `path`, which is right in them.
    """

    path: str
    site: Site | None
    lowest: str
    chain: Chain
    watched: tuple[str, ...]
    method: str = "forward"


@dataclass
class Surgery:
    """Everything that will be done to one traced module."""

    sites: list[Site] = field(default_factory=list)
    identities: dict[str, str] = field(default_factory=dict)  # path -> why
    methods: dict[str, dict[str, Method]] = field(default_factory=dict)  # path -> method name -> source
    events: dict[str, Event] = field(default_factory=dict)  # path -> a call of its regenerated method
    left_out: set[Event] = field(default_factory=set)  # calls that the methods written anew make no more
    plain: set[str] = field(default_factory=set)  # paths whose class becomes a plain module
    dropped: set[str] = field(default_factory=set)  # parameter and buffer paths that go away
    conversions: dict[str, tuple[str, ...]] = field(default_factory=dict)  # path -> its own that do something else
    read: dict[str, set[str]] = field(default_factory=dict)  # replaced path -> attributes that are still asked for
    bare: set[str] = field(default_factory=set)  # paths of norms that lose their scale and shift
    fixed: bool = False  # whether a check holds for the dtypes that were shown alone
    guards: dict[str, int] = field(default_factory=dict)  # path -> rank its input must have
    constants: dict[str, Tensor] = field(default_factory=dict)
    other_calls: list[Calls] = field(default_factory=list)  # of methods that were not traced and run the same regions
    fallbacks: Fallbacks | None = None  # None where nothing may be specialized
    keeping: dict[str, Keeping] = field(default_factory=dict)  # path -> what is kept there for fallbacks
