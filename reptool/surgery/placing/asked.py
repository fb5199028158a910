"""What the code around a region asks: with another answer it may run other operations."""

from __future__ import annotations

import inspect

from torch import fx

from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.trace import VALUE, Event
from reptool.ir.walk import nodes_in
from reptool.pysource.places import asked
from reptool.pysource.straight_line import straight
from reptool.refusal import Code, Refusal
from reptool.surgery.placing.dtypes import casts_shown, ranks_shown
from reptool.surgery.placing.other_answers import forget_what_decides_nothing
from reptool.surgery.site import Site
from reptool.surgery.traced import Traced


def asked_around(traced: Traced, site: Site) -> Refusal | None:
    """Whether the code around the region asked something that another input might answer otherwise."""
    chains = [list(n.meta["event"].ancestors()) for n in (*site.onpath, *site.dead, site.carrier)]
    common = set(chains[0])
    for chain in chains[1:]:
        common &= set(chain)
    lowest = next((e for e in chains[0] if e in common), None)
    seen: list[Event] = []
    for chain, node in zip(chains, (*site.onpath, *site.dead, site.carrier), strict=True):
        for event in chain:
            if event not in seen and (event in common) <= (event is lowest):
                seen.append(event)
            if event is lowest:
                break
        passed = () if node is site.region.value else node.meta.get("through", ())  # calls that hand it on
        seen += [e for e in dict.fromkeys(passed) if e not in common and e not in seen]
    seen += [e for e in _between_reads(traced, site, lowest) if e not in seen]
    shown = [*casts_shown(traced, site.region), *ranks_shown(site.region)]
    if lowest is not None and shown:
        site.dtypes[lowest] = shown
    for event in seen:
        questions = event.questions
        if lowest is not None and event is lowest and questions and _in_line(traced, site, event):
            continue
        recorder, kinds = traced.found.facts.recorder, all(map(asks_kinds, questions))
        if questions and traced.trace.shown and not kinds and forget_what_decides_nothing(event, recorder):
            continue
        if traced.fallbacks is not None and lowest is not None and questions:
            site.asked = [*(site.asked or [lowest]), event]
            continue
        if questions and traced.trace.shown and kinds:
            site.dtypes.setdefault(event, []).extend(questions)  # they are guarded
            continue
        for question in questions:
            return Refusal(
                Code.SPECIALIZED,
                f"{event.function} asks for {asked(question)}; with another answer it may run other code",
                (site.region.value.name,),
            )
    return None


def _between_reads(traced: Traced, site: Site, lowest: Event | None) -> list[Event]:
    """Calls that hand on the region's input and may give another value, where it is read more than once."""
    root = site.region.root
    if lowest is None or sum(root in traced.found.ops[n].sources for n in site.region.form.ops) < 2:
        return []
    calls: list[Event] = list(dict.fromkeys(root.meta.get("through", ())))
    if sum(n is root for n in event_inputs(lowest)) < 2:
        calls = [e for e in calls if lowest in e.ancestors()]
    made = set(root.meta["event"].ancestors())
    return [e for e in calls if e is not lowest and e not in made]


def _in_line(traced: Traced, site: Site, event: Event) -> bool:
    """Whether the text of the method around a chain of layers shows that they always run one after the other."""
    if any(q.what == VALUE for q in event.questions):
        return False  # a test that reads nothing but the module's attributes may be a test of a buffer
    items: list[fx.Node | Event] = []
    for node in sorted((*site.onpath, site.carrier), key=traced.reads.position.__getitem__):
        item: fx.Node | Event = node
        around: Event | None = node.meta["event"]
        while around is not event:
            if around is None:
                return False
            item, around = around, around.parent
        if item not in items:
            items.append(item)
    wheres = [i.where if isinstance(i, Event) else i.meta.get("where") for i in items]
    function = inspect.getattr_static(type(event.module), event.method, None)
    known = [w for w in wheres if w is not None]
    return (
        not site.dead
        and len(known) == len(wheres)
        and function is not None
        and straight(function, known, event.module._modules)
    )


def event_inputs(event: Event) -> list[fx.Node]:
    """The values that a call is given."""
    return list(nodes_in(event.args)) + list(nodes_in(event.kwargs))
