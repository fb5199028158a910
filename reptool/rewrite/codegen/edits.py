"""`Edits`: what is left out of the code and what stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.nodes import is_inert, is_size_like, metadata_read
from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in
from reptool.passages.norm_affine import Bare
from reptool.plan.resolutions.joined import Joined


@dataclass
class Edits:
    """What is left out of the code and what stands in for it.

    Args:
        bypass: fused node -> the node whose value takes its place.
        dead: nodes nobody needs any more.
        layers: functional layer node -> arguments of its replacement ``(function, attribute names, constants)``.
        promoted: left-out arithmetic on an input, which made floating-point numbers of integers.
        bare: norms that are called without their scale and shift.
        joined: what gives values side by side at one resolution, and now gives them as they are.
        omitted: calls that are made no more, since they would give back what they are given.
        folded: calls that are made no more, since a layer does all that they did.
    """

    bypass: dict[fx.Node, fx.Node] = field(default_factory=dict)
    dead: set[fx.Node] = field(default_factory=set)
    layers: dict[fx.Node, tuple[Callable[..., Any], tuple[str, str | None], dict[str, Any]]] = field(
        default_factory=dict
    )
    constants: dict[str, Tensor] = field(default_factory=dict)
    promoted: set[fx.Node] = field(default_factory=set)
    bare: dict[fx.Node, Bare] = field(default_factory=dict)
    joined: dict[fx.Node, Joined] = field(default_factory=dict)
    omitted: set[Event] = field(default_factory=set)
    folded: set[Event] = field(default_factory=set)


def is_dead(item: fx.Node | Event, edits: Edits) -> bool:
    """Whether an item of an event computes nothing that is still needed."""
    if isinstance(item, fx.Node):
        return item in edits.dead
    inner = list(item.nodes())
    if inner and all(n.meta["const"] for n in inner):
        return True  # constants are written down where they are needed
    needed = [n for n in inner if n not in edits.dead and not n.meta["const"] and not is_inert(n)]
    return not needed and any(n in edits.dead for n in inner)


def is_folded(event: Event, edits: Edits) -> bool:
    """Whether all that a call did to values is done by layers elsewhere; what it asked, kinds alone answer."""
    calls = list(all_events(event))
    if event.parent is None or any(e.hooked or e.effects or not all(map(asks_kinds, e.questions)) for e in calls):
        return False
    kept = edits.layers.keys() | edits.promoted
    done = (edits.bypass.keys() | edits.dead) - kept
    nodes = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
    given = [n for n in nodes_in(event.output) if not n.meta["const"]]
    return bool(done.intersection(nodes)) and all(n in done or is_told(n) for n in (*nodes, *given))


def is_told(node: fx.Node) -> bool:
    """Whether a node is worked out from constants and from what values say of themselves, and from no data."""
    seen, stack = {node}, [node]
    while stack:
        one = stack.pop()
        if one.meta["const"] or metadata_read(one) or is_size_like(one):
            continue
        if one.op not in ("call_function", "call_method"):
            return False
        fresh = [n for n in one.all_input_nodes if n not in seen]
        seen.update(fresh)
        stack += fresh
    return True


def gives_back(event: Event, edits: Edits) -> bool:
    """Whether a call gives back an argument and does nothing else any more."""
    calls = list(all_events(event))
    if event.parent is None or any(e.hooked or e.questions or e.effects or e.settings for e in calls):
        return False
    inner = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
    kept = edits.layers.keys() | edits.promoted | edits.joined.keys()
    output = event.output
    if not inner or any(n not in edits.dead and (n not in edits.bypass or n in kept) for n in inner):
        return False
    while output in inner and output in edits.bypass:
        output = edits.bypass[output]
    return isinstance(output, fx.Node) and output not in inner and output not in edits.dead
