"""Arguments: under which other arguments a method still runs the same regions, and guards for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from reptool.capture.optional_arguments import given, is_switch, offered, without
from reptool.ir.trace import Event, Input, all_events
from reptool.ir.walk import nodes_in
from reptool.pysource.functions import behind, loaded_by
from reptool.pysource.module_info import stock_forward
from reptool.pysource.passing_on import that_matter
from reptool.pysource.places import method_of
from reptool.refusal import Code, Refusal
from reptool.rewrite.constants import CannotCutError
from reptool.rewrite.kind_checks import is_fixed, kinds_asked
from reptool.rewrite.method_source import Check, guarded_method
from reptool.rewrite.setting_checks import setting_checks
from reptool.runtime.method import Method
from reptool.safety.changed import Changed
from reptool.safety.other_runs import Runs, Seen
from reptool.safety.settings import Guarded, guarded_settings, ways_of
from reptool.safety.verdict import Found, between
from reptool.surgery.site import Site, Surgery

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Asked:
    """Arguments that matter to a method.

    Args:
        bad: arguments that must be among these constants.
        given: optional arguments that must be given.
        sites: the regions whose layers it may use.
    """

    bad: dict[str, list[Any]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)


class Flags:
    """Checks the methods that the trace called for flags and settings that make them use fused layers otherwise.

    Args:
        runs: runs other code.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.surgeon, self.trace = runs.surgeon, runs.trace
        self._not_between: set[Hashable] = set()  # of modules that are alike: flags that give no value between layers

    def check(self, state: Changed, surgery: Surgery, found: Found) -> None:
        """Guard what matters, and give up regions where that cannot be done."""
        events: dict[tuple[str, str], list[Event]] = {}
        for event in all_events(self.trace.top):
            events.setdefault((event.path, event.method), []).append(event)
        settings, ways = guarded_settings(surgery, self.surgeon), ways_of(surgery, self.surgeon)
        for (path, name), calls in events.items():
            if name in surgery.methods.get(path, {}):
                continue  # it is written anew, for the arguments and settings it was seen with
            asked = self._arguments(state, surgery, found, calls, ways.get((path, name), []))
            if asked is not None:
                self._guard(surgery, found, calls, asked, settings.get((path, name)))

    def let_through(
        self, state: Changed, surgery: Surgery, found: Found, seen: Seen, main: dict[tuple[str, str], list[Site]]
    ) -> bool:
        """Guard what decides that a method which was not called runs regions whole; whether that can be done.

        Args:
            state: what the surgery changes.
            surgery: what will be done.
            found: gets the guards.
            seen: what a run of the method showed.
            main: methods of the forward, and the regions that they hold together, which are guarded already.
        """
        made: dict[tuple[str, str], Method] = {}
        for run in dict.fromkeys(surgeon for _, _, surgeon in seen.whole):
            here = replace(surgery, sites=[site for _, site, surgeon in seen.whole if surgeon is run])
            known = {site: state.patterns[pattern] for pattern, site, _ in seen.whole}
            settings, ways = guarded_settings(here, run), ways_of(here, run)
            for key in {**ways, **settings}:
                sites = [known[s] for s in ways.get(key, ())]
                if key in main and set(sites) <= set(main[key]):
                    continue
                calls = [e for e in all_events(run.trace.top) if (e.path, e.method) == key]
                method = self._guarded(state, surgery, calls, settings.get(key))
                if method is None and key not in main:
                    continue
                if key in main or isinstance(method, CannotCutError) or method is None:
                    return False
                made[key] = method
        if made and surgery.fallbacks is not None:
            return False
        if any(found.methods.get(p, {}).get(n, m) != m for (p, n), m in made.items()):
            return False
        for (path, name), method in made.items():
            found.methods.setdefault(path, {})[name] = method
        return True

    def _guarded(
        self, state: Changed, surgery: Surgery, calls: list[Event], settings: Guarded | None
    ) -> Method | CannotCutError | None:
        """A method that was not called, behind checks of what it may decide by; None where that is nothing."""
        path, name, module = calls[0].path, calls[0].method, calls[0].module
        function = inspect.getattr_static(type(module), name, None)
        if stock_forward(module):
            return None
        if not inspect.isfunction(function):
            return CannotCutError("it is no function") if settings else None
        flags = _flags_of(function, calls)
        kinds = {n: p.kind for n, p in inspect.signature(function).parameters.items()}
        base = {f: s[0] for f, s in flags.items() if kinds[f] not in _VARIADIC}
        alone = len(calls) == 1 and calls[0].parent is None
        free = {f for f in base if alone and Input in self._proven(state, path, name, base, f)}
        bad = that_matter({f: s for f, s in flags.items() if f not in free}, set(flags), function, module)
        if not bad and settings is None:
            return None
        try:
            checks = self._checks(surgery, settings) if settings is not None else []
            made = guarded_method(type(module), name, bad, {}, checks)
        except CannotCutError as error:
            return error
        return made or CannotCutError("its signature cannot be written down")

    def _arguments(
        self, state: Changed, surgery: Surgery, found: Found, calls: list[Event], sites: list[Site]
    ) -> Asked | None:
        """The arguments that matter to a method; None where regions are given up for them."""
        path, name, module = calls[0].path, calls[0].method, calls[0].module
        function = inspect.getattr_static(type(module), name, None)
        if not sites or not inspect.isfunction(function) or state.is_gone(path) or stock_forward(module):
            return Asked()
        flags, held = _flags_of(function, calls), given(function, calls)
        kinds = {n: p.kind for n, p in inspect.signature(function).parameters.items()}
        base = {f: s[0] for f, s in flags.items() if kinds[f] not in _VARIADIC} | held
        annotated = inspect.signature(function).parameters
        bad: dict[str, list[Any]] = {}
        for flag, seen in flags.items():
            if flag in held:
                continue
            proven = self._proven(state, path, name, base, flag) if flag in base else ()
            both = all(any(v is p for p in (*proven, *seen)) for v in (True, False))
            if Input not in proven and not (both and is_switch(annotated[flag])):
                bad[flag] = [*seen, *proven]
        needed = {
            f: v
            for f, v in held.items()
            if not all(self.runs.same(state, path, name, {**base, f: w}) for w in without(f, v, function))
        }
        bad = that_matter(bad, {*flags, *held}, function, module)
        parts: frozenset[Site] = frozenset()
        if surgery.fallbacks is None:
            asked = [f for f in bad if self._may_be_given(function, calls, f)]
            parts = self._shown_between(state, path, name, base, asked) if len(asked) == len(bad) else frozenset()
            parts |= self._offered(state, function, calls, base, bad)
        for site in parts:
            found.problems[site.region] = between(site, method_of(self.trace.place(path), type(module), name))
        return None if parts else Asked(bad, needed, sites)

    def _guard(
        self, surgery: Surgery, found: Found, calls: list[Event], asked: Asked, settings: Guarded | None
    ) -> None:
        """Put checks in front of a method, or give up the regions for which that cannot be done."""
        path, name, module = calls[0].path, calls[0].method, calls[0].module
        sites = list(dict.fromkeys([*asked.sites, *(settings.sites if settings is not None else ())]))
        if not (asked.bad or asked.given or settings):
            return
        if surgery.fallbacks is not None:
            for event in calls:
                surgery.fallbacks.need(event, (), sites, settings.settings if settings is not None else ())
            return
        try:
            checks = self._checks(surgery, settings) if settings is not None else []
            assumed = not self.trace.shown and any(e.parent is None for e in calls)
            if assumed and (asked.bad or asked.given):
                what = sorted({*asked.bad, *asked.given})[0]
                raise CannotCutError(f"it may run other code with another {what!r}; give example_inputs that show it")
            method = guarded_method(type(module), name, asked.bad, asked.given, checks)
            if method is None:
                raise CannotCutError("its signature cannot be written down")
        except CannotCutError as error:
            where = f"{self.trace.place(path)}.{name}"
            refusal = Refusal(Code.SPECIALIZED, f"{where}: {error}", (self.trace.place(path),))
            for site in sites:
                found.problems[site.region] = refusal.at(site.region.value.name)
            return
        found.methods.setdefault(path, {})[name] = method

    def _checks(self, surgery: Surgery, settings: Guarded) -> list[Check]:
        recorder = self.surgeon.found.facts.recorder
        dtypes = [d for event, asked in settings.asked.items() for d in kinds_asked(event, asked, recorder)]
        held = [*settings.settings, *dtypes]
        surgery.fixed |= any(map(is_fixed, held))
        return setting_checks(settings.event, held)

    @staticmethod
    def _may_be_given(function: Callable[..., Any], calls: list[Event], flag: str) -> bool:
        """Whether a flag is the model's own, or one that code inside of it gives: nobody else may pass it."""
        signature = inspect.signature(function)
        own = any(e.parent is None for e in calls)
        return own or any(flag in signature.bind(e.module, *e.args, **e.kwargs).arguments for e in calls)

    def _proven(self, state: Changed, path: str, name: str, base: dict[str, Any], flag: str) -> tuple[Any, ...]:
        """Other values of a flag with which the method shows the same regions; `Input` for any value."""
        value = base[flag]
        others = [not value] if type(value) is bool else [True, False, Input(flag)] if value is None else []
        same = [v for v in others if self.runs.same(state, path, name, {**base, flag: v})]
        if type(value) is bool:
            return (Input,) if same else ()
        if same and all(any(v is s for s in same) for v in others):
            return (Input,)
        return tuple(v for v in same if not isinstance(v, Input))

    def _shown_between(
        self, state: Changed, path: str, name: str, base: dict[str, Any], bad: list[str]
    ) -> frozenset[Site]:
        """Sites that only join layers in a row, which another flag gives the values between; none if it does more."""
        like = (self.runs.likeness(state, path, name, base) if bad else None, tuple(bad))
        if like in self._not_between:
            return frozenset()
        out = self._given_between(state, path, name, base, bad)
        if like[0] is not None and not out:
            self._not_between.add(like)
        return out

    def _given_between(
        self, state: Changed, path: str, name: str, base: dict[str, Any], bad: list[str]
    ) -> frozenset[Site]:
        out: frozenset[Site] = frozenset()
        for flag in bad:
            if flag not in base or not (base[flag] is None or type(base[flag]) is bool):
                return frozenset()
            for value in (True, False):
                differs = self.runs.differs(state, path, name, {**base, flag: value})
                if differs is None or not all(map(self.runs.in_series, differs)):
                    return frozenset()
                out |= differs
        return out

    def _offered(
        self,
        state: Changed,
        function: Callable[..., Any],
        calls: list[Event],
        base: dict[str, Any],
        bad: Iterable[str],
    ) -> frozenset[Site]:
        """Sites that a mode that the model offers runs whole, but gives a value between: a guard would take it away."""
        signature, out, first = inspect.signature(function), frozenset[Site](), calls[0]
        for flag in (f for f in bad if f in base):
            parameter, value = signature.parameters[flag], base[flag]
            given = [flag in signature.bind(e.module, *e.args, **e.kwargs).arguments for e in calls]
            if any(offered(e, parameter, value, g, self.trace.prefix) for e, g in zip(calls, given, strict=True)):
                for other in {True, False} - {value}:
                    out |= self.runs.differs(state, first.path, first.method, {**base, flag: other}) or frozenset()
        return out & {site for pattern, site in state.patterns.items() if pattern in self.runs.shown}


def _flags_of(function: Callable[..., Any], calls: list[Event]) -> dict[str, list[Any]]:
    """Parameters that were given constants, with what was seen."""
    signature = inspect.signature(function)
    parts = behind(function)
    read = {name for f in parts for name in loaded_by(f.__code__)}
    if len(parts) > 1:  # a decorator has its own names for them
        read |= {n for n, p in signature.parameters.items() if p.kind in _VARIADIC}
    out: dict[str, list[Any]] = {}
    for event in calls:
        try:
            bound = signature.bind(event.module, *event.args, **event.kwargs)
        except TypeError:
            continue
        bound.apply_defaults()
        for name in list(signature.parameters)[1:]:
            if name in read and not any(True for _ in nodes_in(bound.arguments[name])):
                out.setdefault(name, []).append(bound.arguments[name])
    return {n: v for n, v in out.items() if len(v) == len(calls)}
