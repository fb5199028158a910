"""The safety check: other code that can reach the modules a surgery changes, and what no gate sees of it.

A fused layer means "convolution, then norm" only for code that runs the convolution and then the norm. The trace shows
one way through the model; its gate stops all others when they are called. Methods that were not called are run on
symbolic values: where they show the same regions, the gates let them through. What no gate sees is decided here: uses
of weights that are others now, and code that asks what its modules are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.trace import Event, all_events
from reptool.pysource.functions import codes_in, run_by
from reptool.pysource.module_info import stock_forward
from reptool.pysource.places import asked, method_of
from reptool.pysource.used import lists_tensors
from reptool.refusal import Code, Refusal
from reptool.rewrite.method_source import sealed_method
from reptool.safety.changed import Changed, reached
from reptool.safety.flags import Flags
from reptool.safety.methods import methods_of, names_of, properties_of, takes_data
from reptool.safety.other_runs import Runs
from reptool.safety.settings import ways_of
from reptool.safety.verdict import Found, between
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon

WALKS = frozenset({"modules", "named_modules", "children", "named_children", "get_submodule", "_modules", "getattr"})
"""Ways to get at modules without their names."""


class Wiring:
    """Checks one unit's surgery against all code that reaches its modules.

    Args:
        surgeon: of the unit.
        ancestors: full path -> module for everything above the unit's root.
        untraced: full paths of modules whose forward could not be followed.
        values: whether values may be looked at.
    """

    def __init__(
        self, surgeon: Surgeon, ancestors: Mapping[str, nn.Module], untraced: Iterable[str], values: bool
    ) -> None:
        self.surgeon, self.ancestors = surgeon, ancestors
        self.trace = surgeon.trace
        self.prefix = f"{self.trace.prefix}." if self.trace.prefix else ""
        self.untraced = set(untraced)
        self.runs = Runs(surgeon, values)
        self.flags = Flags(self.runs)

    def check(self, surgery: Surgery) -> Found:
        """What is to be done about other code before this surgery is right."""
        found = Found()
        if not surgery.sites:
            return found
        state = Changed(surgery, self.surgeon)
        self._opaque(state, found)
        self._answers(state, surgery, found)
        self._kinds(state, surgery, found)
        if found.problems:
            return found
        with self.runs.together():
            self._methods(state, surgery, found)
            self.flags.check(state, surgery, found)
        return found

    # --- code that could not be followed
    def _opaque(self, state: Changed, found: Found) -> None:
        """A model cannot do without its own forward: where that would be stopped by a gate, the region stays."""
        full = self.trace.prefix
        for path, module in self.ancestors.items():
            if path != full:
                below = full[len(path) :].lstrip(".")
                self._unfollowed(found, path, module, reached(state, "", module, "forward", below=below), state.paths)
        for other in self.untraced:
            path = other[len(self.prefix) :]
            inner = self.surgeon.modules.get(path) if other.startswith(self.prefix) and other != full else None
            if inner is not None and not state.is_gone(path):
                sites = reached(state, path, inner, "forward")
                self._unfollowed(found, other, inner, sites, state.inside.get(path, ()))

    def _unfollowed(
        self, found: Found, place: str, module: nn.Module, sites: Iterable[Site], inside: Iterable[Site]
    ) -> None:
        why = (
            f"{method_of(place, type(module), 'forward')} could not be followed and may use the modules of this region"
        )
        for site in inside if lists_tensors("forward", module) else sites:
            found.problems[site.region] = Refusal(Code.UNTRACEABLE, f"{why} one by one", (site.region.value.name,))

    # --- the same method with other answers
    def _answers(self, state: Changed, surgery: Surgery, found: Found) -> None:
        """A method that asked something may use parts of a block one by one where the answer is another.

        The gates see the calls; what reads weights, and what is to run as it was, is looked for in the text.
        """
        methods: dict[str, set[str]] = {}
        for event in all_events(self.trace.top):
            methods.setdefault(event.path, set()).add(event.method)
        for event in all_events(self.trace.top):
            questions = event.questions
            if (
                not questions
                or state.is_gone(event.path)
                or stock_forward(event.module)
                or _is_left_out(event, surgery)
            ):
                continue
            if surgery.fallbacks is None and not names_of(type(event.module), event.method) & state.weights:
                continue
            judged = frozenset(methods[event.path] - {event.method})
            for site in reached(state, event.path, event.module, event.method, judged):
                if any(n.meta["event"] is event for n in site.region.form.ops):
                    continue  # its own operations: the surgeon has judged them
                if surgery.fallbacks is not None:
                    surgery.fallbacks.reach(event, site)
                    continue
                if self.trace.shown and all(map(asks_kinds, questions)):
                    site.dtypes.setdefault(event, questions)
                    continue
                found.problems[site.region] = Refusal(
                    Code.SPECIALIZED,
                    f"{event.function} asks for {asked(questions[0])} and names parts of this region and weights; "
                    "with another answer it may read them",
                    (site.region.value.name,),
                )

    # --- code that asks what its modules are
    def _kinds(self, state: Changed, surgery: Surgery, found: Found) -> None:
        """An absorbed norm is no norm, a fused layer may have a bias and another stride: who asks keeps them."""
        for event in all_events(self.trace.top):
            if state.is_gone(event.path) or _is_left_out(event, surgery):
                continue
            told = {s.path for s in event.settings if (s.path, s.name) in state.told}
            made, looked = surgery.methods.get(event.path, {}).get(event.method), event.peeked
            if made is None:
                told |= event.lacking | asked_types(event, state.all)
            else:  # it is written anew, and asks for what is still in its text
                looked = looked & made.read
            for site, paths in state.paths.items() if told or looked else ():
                if told & paths or looked & (paths - {site.slot} if site.reuse else paths):
                    found.problems[site.region] = Refusal(
                        Code.SPECIALIZED,
                        f"{event.function} asks what kind of module an absorbed layer is, or for its parameters",
                        (site.region.value.name,),
                    )

    # --- methods that were not called
    def _methods(self, state: Changed, surgery: Surgery, found: Found) -> None:
        called = {(e.path, e.method) for e in all_events(self.trace.top) if not _is_written_out(e, surgery)}
        named = {n for e in all_events(self.trace.top) for n in names_of(type(e.module), e.method)}
        stopped: dict[tuple[type, str], bool] = {}
        own: dict[type, list[str]] = {}
        for path, module in self.surgeon.modules.items():
            if state.is_gone(path) or path not in state.above:
                continue
            cls, parts = type(module), state.parts(path)
            if cls not in own:
                own[cls] = [*methods_of(cls), *(n for n in properties_of(cls) if n not in named)]
            for name in own[cls]:
                if (path, name) in called:
                    continue
                names = names_of(cls, name)
                reaches = bool(names & (parts | WALKS)) or any(p.isdigit() for p in parts)
                asks = reaches and any(n in names for _, n in state.told)
                kind = Other(path, name, reaches and takes_data(cls, name), bool(names & state.weights), asks)
                if not (kind.runs or kind.weighs or kind.asks):
                    continue
                if (cls, name) not in stopped:
                    stops = self._method(state, surgery, found, kind, called)
                    if stops is not None and surgery.fallbacks is None:
                        stopped[cls, name] = stops
                elif stopped[cls, name]:
                    self._seal(found, kind)

    def _method(
        self, state: Changed, surgery: Surgery, found: Found, kind: Other, called: set[tuple[str, str]]
    ) -> bool | None:
        """One method that was not called: the gates let it through where it runs regions whole, and stop it elsewhere.

        What no gate sees is a weight that is another one now: a method that uses one raises.

        Returns:
            Whether it raises, where that may be said of all modules of the class; None where each has to be looked at.
        """
        path, name = kind.path, kind.name
        seen = self.runs.seen(state, path, name, {})
        differs = frozenset[Site]() if seen is None else seen.differs
        if seen is not None and seen.whole:
            main = {k: v for k, v in ways_of(surgery, self.surgeon).items() if k in called}
            if self.flags.let_through(state, surgery, found, seen, main):
                surgery.other_calls += self.runs.calls(state, path, name, surgery)
            else:
                differs |= {state.patterns[p] for p, *_ in seen.whole if p in state.patterns}
        if seen is not None and not seen.weights and not (kind.runs and differs):
            return None
        weighs = kind.weighs and (kind.runs or (seen is None and self.runs.read_weights(state, path, name)))
        if seen is None and not weighs and not kind.asks:
            return False
        if kind.runs and surgery.fallbacks is not None:
            sites = state.inside.get(path, ()) if seen is None else differs
            if surgery.fallbacks.redirect(path, name, sites):
                return None
        parts = frozenset[Site]() if seen is None or not kind.runs or name.startswith("_") else seen.parts
        if parts and all(map(self.runs.in_series, differs)):
            method = method_of(self.trace.place(path), type(self.surgeon.modules[path]), name)
            found.problems |= {site.region: between(site, method) for site in parts}
        elif seen is None or seen.weights:
            self._seal(found, kind)
            return True
        return None if kind.weighs or kind.asks or (seen is not None and seen.whole) else False

    def _seal(self, found: Found, kind: Other) -> None:
        """Let a method raise."""
        made = sealed_method(type(self.surgeon.modules[kind.path]), kind.name, kind.path or "<root>")
        if made is not None:
            found.methods.setdefault(kind.path, {})[kind.name] = made


@dataclass(frozen=True)
class Other:
    """A method that was not called.

    Args:
        path: of its module.
        name: of the method.
        runs: whether it may run modules that a surgery changes.
        weighs: whether it may use weights that are others now.
        asks: whether it may ask for an attribute that a layer answers otherwise now.
    """

    path: str
    name: str
    runs: bool
    weighs: bool
    asks: bool


def asked_types(event: Event, paths: Iterable[str]) -> set[str]:
    """Modules of which a method may ask ``type(...)``, the only question of this kind that tracing cannot see."""
    function = inspect.getattr_static(type(event.module), event.method, None)
    own = [f for f in run_by(function) if not str(f.__module__).startswith("torch.")]
    names, lead = (
        {n for f in own for c in codes_in(f.__code__) for n in c.co_names},
        f"{event.path}." if event.path else "",
    )
    if not names & {"type", "__class__"}:
        return set()
    named = {p: [n for n in p[len(lead) :].split(".") if not n.isdigit()] for p in paths if p.startswith(lead)}
    return {p for p, parts in named.items() if not parts or parts[-1] in names}


def _is_left_out(event: Event, surgery: Surgery) -> bool:
    """Whether a call is made no more, nor is its method written anew."""
    return event in surgery.left_out and event.method not in surgery.methods.get(event.path, ())


def _is_written_out(event: Event, surgery: Surgery) -> bool:
    """Whether a method that was traced is called no more, since the method that called it was written anew."""
    around = event.parent
    made = None if around is None else surgery.methods.get(around.path, {}).get(around.method)
    return made is not None and event.method != "forward" and f".{event.method}(" not in made.source
