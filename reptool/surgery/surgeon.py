"""`Surgeon`: where each region's layer goes and what becomes of the operations it absorbs.

By preference the fused layer takes the slot of a layer of its own type and the absorbed modules become `Absorbed`:
no code changes. Sums, concatenations and functional operations are left out of the one method they occur in, which is
written anew (`rewrite.codegen`). Everything is worked out here before anything is written; `apply` then only assigns.
"""

from __future__ import annotations

from torch import fx

from reptool.plan.select import Region
from reptool.refusal import Refusal
from reptool.rewrite.lower import Geometry
from reptool.surgery.editing.operate import operate
from reptool.surgery.placing.placement import placed, site_of
from reptool.surgery.placing.use_check import uses_refused
from reptool.surgery.site import Site, Surgery
from reptool.surgery.traced import Traced


class Surgeon(Traced):
    """Finds the places, checks ownership and works out the edits of one trace."""

    def site(self, region: Region) -> Site | Refusal:
        """The best place for a region's layer, or why there is none."""
        return site_of(self, region)

    def placed(self, region: Region, carrier: fx.Node, shape: Geometry) -> Site | Refusal:
        """The region's layer at the place of one carrier, or why it cannot stand there."""
        return placed(self, region, carrier, shape)

    def check(self, sites: list[Site]) -> dict[Region, Refusal]:
        """Regions whose modules are used in a way the surgery would change."""
        return uses_refused(self, sites)

    def operate(self, sites: list[Site]) -> Surgery | dict[fx.Node, Refusal]:
        """All edits for these sites, or the value nodes of those that cannot be done and why."""
        return operate(self, sites)
