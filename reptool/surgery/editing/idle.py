"""Modules that nothing runs any more: those that computed a weight, and identities off the way of a layer.

Nobody would notice if they stayed, and so nobody would notice either that a hook on them or another one in their place
has no effect. They are absorbed like any other.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in
from reptool.surgery.editing.draft import Draft
from reptool.surgery.site import is_below
from reptool.surgery.traced import is_plain_identity


def absorb_idle(draft: Draft) -> None:
    """Absorb modules all of whose calls did something for operations alone that are gone."""
    for path, calls in draft.traced.calls.items():
        if path and not lies_in(path, draft.slots) and all(_is_idle(draft, call) for call in calls):
            draft.surgery.identities.setdefault(path, "no longer needed")


def _is_idle(draft: Draft, call: fx.Node | Event) -> bool:
    edits = draft.edits
    if isinstance(call, fx.Node):
        if not call.meta["const"]:
            return call in edits.dead and is_plain_identity(draft.found.ops.get(call), call)
        made = [call]
    else:
        made = list(nodes_in(call.output)) if call.parent is not None and call.method == "forward" else []
        if not made or not all(n.meta["const"] for n in (*made, *call.nodes())):
            return False
    users = [u for n in made for u in draft.traced.const_users(n, sizes=True)]
    return bool(users) and all(u in edits.dead or u in edits.bypass or u in edits.bare for u in users)


def absorbed_in(draft: Draft, event: Event) -> tuple[str, ...]:
    """Paths below the module of a call of what is absorbed of that which it ran, outermost first."""
    called = {e.path for e in all_events(event)} | {str(n.target) for n in event.nodes() if n.op == "call_module"}
    gone = called & draft.surgery.identities.keys()
    return tuple(sorted(p for p in gone if lies_in(p, {event.path}) and not lies_in(p, gone - {p})))


def lies_in(path: str, others: Collection[str]) -> bool:
    """Whether a path is one of others, or below one."""
    return path in others or "" in others or is_below(path, others)
