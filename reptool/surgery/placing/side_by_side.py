"""Values side by side on their way to the layer that reads them: code in between gets several in place of one.

A method that is written anew holds what was traced. Any other one on the way has to hand on what it is given to modules
of its own, and may do nothing else with it.
"""

from __future__ import annotations

from torch import fx, nn

from reptool.ir.trace import Event, all_events
from reptool.ir.walk import nodes_in
from reptool.pysource.handed import only_hands_on
from reptool.pysource.places import named
from reptool.refusal import Code, Refusal
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def handed_on(traced: Traced, site: Site) -> Refusal | None:
    """Why code between what stands side by side and the layer that reads it may not get several values."""
    joined = site.region.form.joined
    if joined is None:
        return None
    if traced.fallbacks is not None and any(size is not None for size in joined.sizes()):
        sentence = "it is told what size to give, and what runs at other sizes is to be kept"
        return Refusal(Code.RESAMPLING, sentence, (joined.node.name,))
    around: Event = joined.node.meta["event"]
    chain = list(site.carrier.meta["event"].ancestors())
    if around not in chain:
        sentence = f"{around.place} gives {named(joined.node)} to code that may do more with it than to hand it on"
        return Refusal(Code.METHOD, sentence, (joined.node.name,))
    position = traced.reads.position
    same = {joined.node, *(n for n in site.onpath if position[joined.node] < position[n] < position[site.carrier])}
    other = next((n for n in same if n.op == "call_module" and not _is_identity(n.meta["module"])), None)
    if other is not None:
        return Refusal(Code.METHOD, f"{named(other)} takes no more than one value", (other.name,))
    inside = chain[: chain.index(around)]
    takers = [e for e in all_events(traced.trace.top) if same.intersection(nodes_in((e.args, e.kwargs)))]
    for event in dict.fromkeys((*inside, *takers)):
        if event.hooked:
            return Refusal(Code.HOOK, f"{event.place} has hooks that would see several values", (joined.node.name,))
        given = [i for i, value in enumerate(event.args) if isinstance(value, fx.Node) and value in same]
        if len(given) != 1 or event.kwargs or not only_hands_on(event.module, event.method, given[0]):
            sentence = f"{event.place} may do more with {named(joined.node)} than to hand it on to the layer"
            return Refusal(Code.METHOD, sentence, (joined.node.name,))
    return None


def _is_identity(module: nn.Module) -> bool:
    return type(module).forward is nn.Identity.forward and "forward" not in vars(module)
