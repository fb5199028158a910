"""Parameters and buffers that nothing reads any more, and norms that are none any more."""

from __future__ import annotations

from torch import fx, nn

from reptool.ir.nodes import metadata_read
from reptool.ir.trace import Event
from reptool.runtime.subclass import own_members
from reptool.surgery.editing.draft import Draft


def drop(draft: Draft) -> None:
    """Parameters and buffers that nothing reads any more, and norms that are none any more."""
    kept = {f"{s.owner}.{n}" if s.owner else n for s in draft.surgery.sites if s.slot is None for n in s.names if n}
    kept |= _given_out(draft)
    for site in draft.surgery.sites:
        for node in site.region.form.ops:
            op = draft.found.ops[node]
            behind = draft.found.own.get(node)
            if node.op == "call_module" or (behind is not None and behind.bare.module):
                continue
            for owner in op.owners:
                if owner in draft.trace.constants or owner in kept:
                    continue
                if any(owner == s or owner.startswith(s + ".") for s in draft.slots):
                    continue
                if not is_read(draft, owner):
                    draft.surgery.dropped.add(owner)
    for path in filter(None, draft.surgery.methods):
        if _is_no_layer(draft, path, kept):
            draft.surgery.plain.add(path)
            draft.surgery.dropped |= {f"{path}.{n}" for n, _ in draft.traced.modules[path].named_buffers(recurse=False)}


def is_read(draft: Draft, tensor: str) -> bool:
    """Whether an operation that still runs reads a parameter or buffer."""
    users = (u for a in draft.traced.attributes_of(tensor) for u in draft.traced.const_users(a, sizes=True))
    alive = (u for u in users if not (u in draft.edits.dead or u in draft.edits.bypass or u in draft.edits.bare))
    return any(not (metadata_read(u) and _is_left_out(draft, u, tensor)) for u in alive)


def _is_left_out(draft: Draft, node: fx.Node, tensor: str) -> bool:
    """Whether the method in which a node occurs was written anew, and its text reads nothing beside a tensor."""
    for event in node.meta["event"].ancestors():
        made = draft.surgery.methods.get(event.path, {}).get(event.method)
        if made is not None:
            return tensor.rpartition(".")[0] not in made.read
    return False


def _is_no_layer(draft: Draft, path: str, kept: set[str]) -> bool:
    """Whether a layer whose method was written anew reads none of its tensors, and calls only methods that move."""
    module = draft.traced.modules[path]
    own = {f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)}
    if not isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.conv._ConvNd, nn.Linear)):
        return False
    if own & kept or not own <= draft.surgery.dropped:
        return False
    if any(is_read(draft, f"{path}.{n}") for n, _ in module.named_buffers(recurse=False)):
        return False
    called = {i.method for i in draft.surgery.events[path].items if isinstance(i, Event) and i.module is module}
    return called <= own_members(type(module)).keys()


def _given_out(draft: Draft) -> set[str]:
    """Parameters and buffers that methods written anew give to their callers, whatever becomes of them there."""
    return {
        str(node.target)
        for node, events in draft.traced.givers.items()
        if any(e.method in draft.surgery.methods.get(e.path, ()) for e in events)
    }
