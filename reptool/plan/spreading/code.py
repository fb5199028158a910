"""The code around a norm, which with another answer or in another call may not do what its trace shows."""

from __future__ import annotations

from reptool.ir.trace import Event, Trace, all_events
from reptool.plan.spreading.way import Way
from reptool.pysource.places import asked
from reptool.refusal import Code, Refusal


def asked_around(way: Way) -> Refusal | None:
    """Whether the code around asks something: with another answer the parts may not meet in this norm."""
    inner = [*way.tree, *(p.leaf for p in way.parts)]
    chains = [list(n.meta["event"].ancestors()) for n in (way.norm, *inner)]
    common = set(chains[0]).intersection(*chains[1:])
    lowest = next((e for e in chains[0] if e in common), None)
    chains.append([e for n in inner for e in n.meta.get("through", ())])
    for event in (e for chain in chains for e in chain if e is lowest or e not in common):
        for question in event.questions:
            return Refusal(
                Code.SPECIALIZED,
                f"{event.function} asks for {asked(question)}; with another answer it may run other code",
            )
    return None


def run_again(way: Way, trace: Trace) -> Refusal | None:
    """Whether the code in which the norm stands runs more than once."""
    calls: list[tuple[str, str]] = [(e.path, e.method) for e in all_events(trace.top)]
    event: Event | None = way.norm.meta["event"]
    while event is not None:
        if calls.count((event.path, event.method)) > 1:
            return Refusal(Code.SHARED, f"{event.function}, in which it stands, is called twice")
        event = event.parent
    return None
