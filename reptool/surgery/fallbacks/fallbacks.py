"""Fallbacks: methods that were specialized, and what has to be kept so that they still run as they were.

With `keep_fallback=True` a method whose code asked something (a size, a flag, a dtype) may be specialized: it begins
with a guard over its arguments, and where that does not hold it runs as it was on copies of the original layers.

Three conditions make that exact. No region lies across the border of the method. Every answer depends on its arguments
alone (`rewrite.guard_inference`). What its original code reaches is kept together, and none of it lies outside of the
module. The price: kept weights cost what weights cost, so the regions of a module have to save more than it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from reptool.capture.tracer import Recorder
from reptool.ir.trace import Event
from reptool.plan.select import Region
from reptool.pysource.functions import behind
from reptool.refusal import Code, Refusal
from reptool.rewrite.constants import CannotCutError
from reptool.rewrite.guard_inference import CannotGuardError, guard
from reptool.rewrite.method_source import specialized_method
from reptool.rewrite.setting_checks import setting_checks
from reptool.runtime.expect import KEPT
from reptool.surgery.fallbacks.fallback import Fallback
from reptool.surgery.fallbacks.keeping import Keeper, changed_by, full_path
from reptool.surgery.site import Site, Surgery

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WALKS = {"children", "named_children", "modules", "named_modules", "_modules"}


class Fallbacks:
    """All fallbacks of one surgery.

    Args:
        recorder: what traced the model.
        calls: all calls that were traced.
        sites: the sites of the surgery.
        aliases: path of a module -> all paths of it.
        held: paths of modules that are also kept in plain attributes.
        force: whether a fallback may be dearer than what it saves.
    """

    def __init__(
        self,
        recorder: Recorder,
        calls: list[Event],
        sites: list[Site],
        aliases: dict[str, list[str]],
        held: set[str],
        force: bool,
    ) -> None:
        self.recorder, self.calls, self.sites = recorder, calls, sites
        self.found: dict[tuple[str, str], Fallback] = {}
        self.rewritten: set[Event] = set()  # calls whose method is written anew
        self._keeper = Keeper(recorder, sites, aliases, held, force)
        for site in sites:
            if site.asked:
                self.need(site.asked[0], site.asked[1:], [site])

    def hold(self, holders: dict[Site, set[str]]) -> None:
        """Say which modules hold the tensors that a region reads: the original code finds them there."""
        for site, paths in holders.items():
            self._keeper.spans[site] |= paths

    def need(self, event: Event, asked: Iterable[Event], sites: Iterable[Site], settings: Iterable[Any] = ()) -> None:
        """Specialize the method of a call, or of the smallest call around it that no region lies across.

        Args:
            event: a traced call.
            asked: other calls whose answers the new code relies on.
            sites: the sites that this is for.
            settings: what else has to be as it was.
        """
        relied, sites = {event, *asked}, list(sites)
        place = next(e for e in event.ancestors() if self._closed(e, sites, relied))
        key = (place.path, place.method)
        found = self.found.setdefault(key, Fallback(*key))
        found.asked.setdefault(place, {place}).update(relied)
        found.sites += [s for s in sites if s not in found.sites]
        found.settings += settings

    def reach(self, event: Event, site: Site) -> None:
        """The code of a traced call may use a site's layers one by one where an answer is another."""
        for fallback in self.found.values():
            for place, asked in fallback.asked.items():
                if event in asked and self._closed(place, [site], set()):
                    fallback.reached += [site] if site not in fallback.reached else []
                    return
        self.need(event, (), [site])

    def redirect(self, path: str, method: str, sites: Iterable[Site]) -> bool:
        """Let a method that was not traced run as it was, if its module keeps its originals anyway."""
        if not any(f.path == path for f in self.found.values()):
            return False
        found = self.found.setdefault((path, method), Fallback(path, method))
        found.reached += [s for s in sites if s not in found.reached]
        return True

    def _closed(self, event: Event, sites: list[Site], asked: set[Event]) -> bool:
        """Whether no region lies across the border of a call, and these sites and calls lie in it."""
        if event.parent is None:
            return True
        if _walks(event) or isinstance(event.module, _CONTAINERS):
            return False
        if any(event not in e.ancestors() for e in asked):
            return False
        nodes = set(event.nodes())
        inside = all(_of_trace(s) <= nodes for s in sites)
        return inside and all(_of_trace(s) <= nodes or not _of_trace(s) & nodes for s in self.sites)

    def finish(self, surgery: Surgery) -> dict[Region, Refusal]:
        """Work out guards and what is kept; the regions for which that is impossible or too dear."""
        problems = self._mixed(surgery)
        changed = changed_by(surgery)
        self._keeper.made = {}
        for fallback in self.found.values():
            problems |= self._worked_out(fallback, changed)
        return problems or self._keeper.dearer(self.found.values(), changed)

    def _worked_out(self, fallback: Fallback, changed: dict[str, set[str] | None]) -> dict[Region, Refusal]:
        try:
            self._guard(fallback)
            self._keeper.keep(fallback, changed)
        except CannotGuardError as error:
            why = f"{full_path(self.recorder, fallback.path)}.{fallback.method} cannot be specialized: {error}"
            sites = fallback.sites or fallback.reached
            return {s.region: Refusal(Code.SPECIALIZED, why, (s.region.value.name,)) for s in sites}
        return {}

    def _mixed(self, surgery: Surgery) -> dict[Region, Refusal]:
        """A method written anew for one call that another call, without a guard of its own, runs otherwise."""
        problems: dict[Region, Refusal] = {}
        for path, methods in surgery.methods.items():
            for name in methods:
                calls = [e for e in self.calls if (e.path, e.method) == (path, name)]
                if (path, name) in self.found or all(e in self.rewritten for e in calls):
                    continue
                why = f"{full_path(self.recorder, path)}.{name} runs differently in different places"
                for site in (s for s in self.sites if path in self._keeper.spans[s]):
                    problems[site.region] = Refusal(Code.SPECIALIZED, why, (site.region.value.name,))
        return problems

    def _guard(self, fallback: Fallback) -> None:
        fallback.guards = []
        places = [e for e in fallback.asked if e in self.rewritten] or list(fallback.asked)
        for place in places:
            asked = fallback.asked[place]
            if isinstance(place.module, fx.GraphModule) or fallback.method in place.module.__dict__:
                raise CannotGuardError("its code is not that of its class")
            if isinstance(place.module, _CONTAINERS) or any(map(_walks, place.ancestors())):
                raise CannotGuardError("its children, or those of a module around it, are walked")
            if KEPT in place.module._modules:
                raise CannotGuardError("it has a fallback already")
            made = guard(place, [q for e in asked for q in e.questions], self.recorder)
            if made not in fallback.guards:
                fallback.guards.append(made)
            fallback.training |= any(_asks_training(e) for e in asked)

    def write(self, surgery: Surgery) -> dict[Region, Refusal]:
        """Put the guards in front of the methods; regions of those whose signature cannot be written down."""
        for (path, name), fallback in self.found.items():
            methods = surgery.methods.setdefault(path, {})
            cls = type(self.recorder.root.get_submodule(path))
            try:
                place = next(iter(fallback.asked), None)
                settings = [] if place is None else setting_checks(place, fallback.settings)
                methods[name] = specialized_method(
                    cls, name, methods.get(name), fallback.guards, fallback.training, settings
                )
            except CannotCutError as error:
                refusal = Refusal(
                    Code.METHOD, f"{full_path(self.recorder, path)}.{name}: {error}", (full_path(self.recorder, path),)
                )
                return {s.region: refusal for s in fallback.sites or fallback.reached}
            if fallback.asked:
                surgery.events.setdefault(path, next(iter(fallback.asked)))
        surgery.keeping = self._keeper.made
        return {}


def _of_trace(site: Site) -> set[fx.Node]:
    """The operations of a region, where an addition of some terms is the addition that the code makes."""
    return {n.meta["share_of"] if "parts" in n.meta else n for n in site.region.form.ops}


def _walks(event: Event) -> bool:
    """Whether code goes through all children of a module: one more among them would be run as well."""
    return bool(_WALKS & set(_names(event)))


def _names(event: Event) -> tuple[str, ...]:
    functions = behind(getattr(type(event.module), event.method))
    return tuple(name for f in functions for name in f.__code__.co_names)


def _asks_training(event: Event) -> bool:
    return "training" in _names(event)
