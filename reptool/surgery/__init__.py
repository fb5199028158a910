"""Surgery: where each region's layer goes and what becomes of the operations it absorbs.

By preference the fused layer takes the slot of a layer of its own type and the absorbed modules become `Absorbed`:
no code changes. Sums, concatenations and functional operations are left out of the one method they occur in, which is
written anew (`rewrite.codegen`). Everything is worked out here before anything is written; `apply` then only assigns.
"""

from __future__ import annotations

from reptool.surgery.edits import Operating
from reptool.surgery.placement import Placing
from reptool.surgery.site import Site as Site
from reptool.surgery.site import Surgery as Surgery
from reptool.surgery.traced import is_plain_identity as is_plain_identity
from reptool.surgery.use_check import Checking


class Surgeon(Placing, Checking, Operating):
    """Finds the places, checks ownership and writes the methods of one trace."""
