"""`Unit`: the plan of one traced module. `Plan`: that of a whole model. `GivenUp`: what failed a check."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from reptool.ir.aliasing import Reads
from reptool.ir.trace import Trace
from reptool.plan.candidates import Analysis
from reptool.plan.inference.facts import Facts
from reptool.plan.select import Region
from reptool.refusal import Refusal
from reptool.surgery.site import Site, Surgery

RegionKey = tuple[str, frozenset[str]]
"""Path of the traced module and names of a region's operations: the same in every plan of one model."""


@dataclass
class GivenUp:
    """What failed a check of what was made or written, and why.

    Args:
        regions: that must not be formed.
        methods: full path of a module and name of its method, that must not be written anew.
    """

    regions: dict[RegionKey, Refusal] = field(default_factory=dict)
    methods: dict[tuple[str, str], Refusal] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.regions or self.methods)

    def refusals(self) -> list[Refusal]:
        """The reasons, each once."""
        return list(dict.fromkeys((*self.regions.values(), *self.methods.values())))

    def holds(self, other: GivenUp) -> bool:
        """Whether everything that another one names is named here."""
        return other.regions.keys() <= self.regions.keys() and other.methods.keys() <= self.methods.keys()

    def add(self, other: GivenUp) -> None:
        """Name what another one names as well."""
        self.regions |= other.regions
        self.methods |= other.methods


@dataclass
class Unit:
    """One traced module with everything worked out for it."""

    prefix: str
    trace: Trace
    reads: Reads
    facts: Facts
    found: Analysis
    surgery: Surgery
    refusals: dict[fx.Node, Refusal]
    alive: set[fx.Node] = field(default_factory=set)  # operations of the plan that are computed as they stand
    questions: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)  # modules named as affine that were not fused

    @cached_property
    def by_root(self) -> dict[fx.Node, list[Site]]:
        """The regions that read a value."""
        found: dict[fx.Node, list[Site]] = {}
        for site in self.surgery.sites:
            for root in site.region.form.reads:
                found.setdefault(root, []).append(site)
        return found

    def gone(self) -> set[str]:
        """Paths of the modules that a layer or an identity replaces."""
        return {s.slot for s in self.surgery.sites if s.slot is not None} | set(self.surgery.identities)


@dataclass
class Plan:
    """All units of a model, and what could not be followed."""

    units: list[Unit] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)
    impulses: dict[str, str] = field(default_factory=dict)  # opaque modules that were read, and how
    unseen: list[Refusal] = field(default_factory=list)  # modules named as affine that no code seen calls


def layer_name(unit: Unit, site: Site) -> str:
    """The full path of a region's layer, as reports and errors name it."""
    path = site.slot if site.slot is not None else site.owner
    full = ".".join(p for p in (unit.prefix, path) if p)
    return full if site.slot is not None else f"{full or '<root>'} (functional)"


def key_of(unit: Unit, region: Region) -> RegionKey:
    """What a region is called in every plan of the model."""
    return unit.prefix, frozenset(n.name for n in region.form.ops)
