"""All edits of a surgery, for the regions whose places are known."""

from __future__ import annotations

from torch import fx

from reptool.refusal import Refusal
from reptool.rewrite.codegen.edits import Edits
from reptool.surgery.editing.draft import Draft
from reptool.surgery.editing.dropped import drop
from reptool.surgery.editing.idle import absorb_emptied, absorb_idle
from reptool.surgery.editing.left_out import kill_inert, leave_out, leave_out_spread, leave_out_terms
from reptool.surgery.editing.methods import mixed, rewrite
from reptool.surgery.site import Site, Surgery
from reptool.surgery.spec import check_surgery
from reptool.surgery.traced import Traced, holders


def operate(traced: Traced, sites: list[Site]) -> Surgery | dict[fx.Node, Refusal]:
    """All edits for these sites, or the value nodes of those that cannot be done and why."""
    draft = Draft(
        traced,
        Edits(constants=traced.trace.constants),
        Surgery(sites, constants=traced.trace.constants),
        traced.alive(sites),
    )
    if traced.fallbacks is not None:
        draft.surgery.fallbacks = traced.fallbacks(sites, traced.aliases)
        draft.surgery.fallbacks.hold({s: _holders(traced, s) for s in sites})
    for site in sites:
        leave_out(draft, site)
    leave_out_spread(draft)
    leave_out_terms(draft)
    kill_inert(draft)
    absorb_idle(draft)
    absorb_emptied(draft)
    rewrite(draft, traced.trace.top)
    problems = draft.problems or (mixed(draft) if traced.fallbacks is None else {})
    if problems:
        return problems
    drop(draft)
    return check_surgery(draft.surgery, traced)


def _holders(traced: Traced, site: Site) -> set[str]:
    """The modules of whose tensors some went into a region by their names."""
    read = (n for n in site.region.form.ops if n.op != "call_module")
    return {path for n in read for path in holders(traced.found.ops[n])}
