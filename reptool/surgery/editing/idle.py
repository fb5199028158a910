"""Modules that nothing runs any more: those that computed a weight, and identities off the way of a layer.

Nobody would notice if they stayed, and so nobody would notice either that a hook on them or another one in their place
has no effect. They are absorbed like any other.
"""

from __future__ import annotations

from torch import fx, nn

from reptool.ir.paths import lies_in
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in
from reptool.surgery.editing.draft import Draft
from reptool.surgery.editing.dropped import is_read
from reptool.surgery.traced import holders, is_plain_identity


def absorb_idle(draft: Draft) -> None:
    """Absorb modules all of whose calls did something for operations alone that are gone."""
    for path, calls in draft.traced.calls.items():
        if path and not lies_in(path, draft.slots) and all(_is_idle(draft, call) for call in calls):
            draft.surgery.identities.setdefault(path, "no longer needed")


def absorb_emptied(draft: Draft) -> None:
    """Absorb modules that are never called and all of whose tensors went into layers: other code reads these."""
    ops = [draft.found.ops[n] for s in draft.surgery.sites for n in s.region.form.ops if n.op != "call_module"]
    owned = {s.owner for s in draft.surgery.sites if s.slot is None}
    given = {str(n.target) for n in draft.traced.givers}
    for path in sorted({p for op in ops for p in holders(op)} - owned - draft.traced.calls.keys() - draft.slots):
        module = draft.traced.modules.get(path)
        if module is None or not _is_layer(module):
            continue
        held = (*module.named_parameters(prefix=path, recurse=False), *module.named_buffers(prefix=path, recurse=False))
        if not any(is_read(draft, name) or name in given for name, _ in held):
            draft.surgery.identities.setdefault(path, "absorbed")


def _is_layer(module: nn.Module) -> bool:
    """Whether a module could be called, and holds no others: no list of parameters."""
    return type(module).forward is not nn.Module.forward and not any(True for _ in module.children())


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
    mine = [draft.found.ops[n] for n in event.nodes() if n in draft.blame and n in draft.found.ops]
    called = {e.path for e in all_events(event)} | {str(n.target) for n in event.nodes() if n.op == "call_module"}
    called |= {path for op in mine for path in holders(op)}
    gone = called & draft.surgery.identities.keys()
    return tuple(sorted(p for p in gone if lies_in(p, {event.path}) and not lies_in(p, gone - {p})))
