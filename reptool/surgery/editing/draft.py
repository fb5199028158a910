"""`Draft`: a surgery while it is worked out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from reptool.ir.trace import Event, Trace
from reptool.plan.candidates import Analysis
from reptool.refusal import Refusal
from reptool.rewrite.codegen.edits import Edits
from reptool.surgery.gating import kin_of
from reptool.surgery.site import Site, Surgery
from reptool.surgery.traced import Traced


@dataclass
class Draft:
    """A surgery while it is worked out.

    Args:
        traced: what it is made on.
        edits: what is left out of the code.
        surgery: what will be done.
        alive: operations that are computed as they stand.
        slots: paths of the modules whose places fused layers take.
        whole: calls that do nothing beside one region.
        blame: operation -> the region for whose sake it goes away.
        problems: value of a region that cannot be done -> why.
        plain: calls whose method they run as it is.
    """

    traced: Traced
    edits: Edits
    surgery: Surgery
    alive: set[fx.Node]
    slots: set[str] = field(default_factory=set)
    whole: set[Event] = field(default_factory=set)
    blame: dict[fx.Node, Site] = field(default_factory=dict)
    problems: dict[fx.Node, Refusal] = field(default_factory=dict)
    plain: set[Event] = field(default_factory=set)

    @cached_property
    def kin(self) -> dict[Site, list[Site]]:
        """For each region those that make what it changed undone with it."""
        return kin_of(self.surgery.sites)

    @property
    def found(self) -> Analysis:
        """What the nodes and values of the trace are."""
        return self.traced.found

    @property
    def trace(self) -> Trace:
        """What was seen."""
        return self.traced.trace
