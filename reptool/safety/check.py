"""The safety check: other code that can reach the modules a surgery changes, and whether it uses them the same way.

A fused layer means "convolution, then norm" only for code that runs the convolution and then the norm. The trace shows
one way through the model; this file looks for the others: methods that were not called, the same method with other
flags, and code that could not be followed. Where the code names a changed module it is run on symbolic values too and
must show the same regions; where that cannot be shown, a method raises, a flag is guarded, or the region is given up.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

from torch import nn

from reptool.ir.kinds.asked import asks_kinds
from reptool.ir.trace import Event, all_events
from reptool.pysource.asked_kinds import asked_kinds
from reptool.pysource.listing import lists_tensors
from reptool.pysource.module_info import stock_forward
from reptool.pysource.places import asked, method_of
from reptool.refusal import Code, Refusal
from reptool.rewrite.method_source import sealed_method
from reptool.safety.changed import Changed, may_use, runs_modules
from reptool.safety.flags import Flags
from reptool.safety.names_read import functions_of, properties_of, without_data
from reptool.safety.other_runs import Runs
from reptool.safety.reach import Reach
from reptool.safety.verdict import Found, between
from reptool.safety.weight_reads import WEIGHTS, uses_values
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon

SCALES = ("elementwise_affine", "affine")
"""What says of a norm whether it scales."""


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
        self.runs, self.reach = Runs(surgeon, values), Reach()
        self.flags = Flags(self.runs, self.reach)

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
        self._methods(state, surgery, found)
        self.flags.check(state, surgery, found)
        return found

    # --- code that could not be followed
    def _opaque(self, state: Changed, found: Found) -> None:
        above = [(p, m) for p, m in self.ancestors.items() if p != self.trace.prefix]
        for path, module in above:
            names = ["forward", *(n for n, _ in functions_of(type(module)))]
            inside = self.trace.prefix[len(path) :].lstrip(".")
            for name in names:
                read = self.reach.loads_of(type(module), name)
                lists = name == "forward" and any(map(lists_tensors, read.functions))
                for site, paths in state.paths.items():
                    if lists or any(may_use(f"{inside}.{p}" if p else inside, "", state, read, inside) for p in paths):
                        found.problems[site.region] = _unfollowed(site, method_of(path, type(module), name))
        for full in self.untraced:
            if not full.startswith(self.prefix) or full == self.trace.prefix:
                continue
            path = full[len(self.prefix) :]
            inner = self.surgeon.modules.get(path)
            if inner is None or state.is_gone(path):
                continue
            read = self.reach.loads_of(type(inner), "forward")
            sites = self.reach.reached(state, path, read)
            if any(map(lists_tensors, read.functions)):
                sites = [s for s, ps in state.paths.items() if any(p.startswith(f"{path}.") or not path for p in ps)]
            for site in sites:
                found.problems[site.region] = _unfollowed(site, method_of(full, type(inner), "forward"))

    # --- the same method with other answers
    def _answers(self, state: Changed, surgery: Surgery, found: Found) -> None:
        """A method that asked something may use parts of a block one by one where the answer is another."""
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
            traced = frozenset(methods[event.path] - {event.method})
            read = self.reach.loads_of(type(event.module), event.method, traced)
            for site in self.reach.reached(state, event.path, read):
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
                    f"{event.function} asks for {asked(questions[0])} and names parts of this region; "
                    "with another answer it may run them one by one",
                    (site.region.value.name,),
                )

    # --- code that asks what its modules are
    def _kinds(self, state: Changed, surgery: Surgery, found: Found) -> None:
        peeked: dict[tuple[str, str], set[str]] = {}
        told: dict[tuple[str, str], set[str]] = {}
        for event in (e for e in all_events(self.trace.top) if not _is_left_out(e, surgery)):
            peeked.setdefault((event.path, event.method), set()).update(event.peeked)
            scales = {s.path for s in event.settings if s.name in SCALES and s.path in surgery.bare}
            told.setdefault((event.path, event.method), set()).update(scales)
        for (path, name), read in peeked.items():
            module = self.surgeon.modules.get(path)
            function = None if module is None else inspect.getattr_static(type(module), name, None)
            if not inspect.isfunction(function) or state.is_gone(path):
                continue
            lead = f"{path}." if path else ""
            made = surgery.methods.get(path, {}).get(name)
            if made is None:
                asked = {f"{lead}{p}" if p else p for p in asked_kinds(function)}
            else:
                asked, read = set[str](), read & made.read  # it is written anew, and asks for what is still in its text
            asked |= told[path, name]
            for site, paths in state.paths.items():
                others = paths - {site.slot} if site.reuse else paths
                if asked & paths or read & others or ("" in asked and any(p.startswith(lead) for p in paths)):
                    found.problems[site.region] = Refusal(
                        Code.SPECIALIZED,
                        f"{self.trace.place(path)}.{name} asks what kind of module an absorbed layer is, or for its "
                        "parameters",
                        (site.region.value.name,),
                    )

    # --- methods that were not called
    def _methods(self, state: Changed, surgery: Surgery, found: Found) -> None:  # long: the cases of a method, in order
        called = {(e.path, e.method) for e in all_events(self.trace.top) if not _is_written_out(e, surgery)}
        named = {n for e in all_events(self.trace.top) for n in self.reach.loads_of(type(e.module), e.method).calls}
        for path, module in self.surgeon.modules.items():
            if state.is_gone(path) or path not in state.above:
                continue
            names = [n for n, _ in functions_of(type(module))]
            if not stock_forward(module):
                names.append("forward")
            for name in names:
                if (path, name) in called:
                    continue
                if name == "forward" and type(module).forward is nn.Module.forward:
                    continue
                read = self.reach.loads_of(type(module), name)
                stock = type(module).forward is nn.Sequential.forward and name == "forward"
                if stock:
                    sites = [s for s, paths in state.paths.items() if any(p.startswith(f"{path}.") for p in paths)]
                else:
                    sites = self.reach.reached(state, path, read)
                differs = self.runs.differs(state, path, name, {}) if sites else frozenset()
                surgery.other_calls += self.runs.calls(state, path, name, surgery)
                if differs is None:
                    if not runs_modules(read, [p for s in sites for p in state.paths[s]]):
                        continue
                elif not differs:
                    continue
                elif not stock and not name.startswith("_") and all(map(self.runs.in_series, differs)):
                    for site in differs:
                        found.problems[site.region] = between(
                            site, method_of(self.trace.place(path), type(module), name)
                        )
                    continue
                if surgery.fallbacks is not None and surgery.fallbacks.redirect(path, name, sites):
                    continue
                method = sealed_method(type(module), name, path or "<root>")
                if method is not None:
                    found.methods.setdefault(path, {})[name] = method
            for name in (*without_data(type(module)), *(n for n in properties_of(type(module)) if n not in named)):
                if (path, name) not in called and self._reads_weights(state, path, name):
                    method = sealed_method(type(module), name, path or "<root>")
                    if method is not None:
                        found.methods.setdefault(path, {})[name] = method

    def _reads_weights(self, state: Changed, path: str, name: str) -> bool:
        """Whether a method without arguments gives or uses weights that are others now."""
        read = self.reach.loads_of(type(self.surgeon.modules[path]), name)
        if not read.calls & WEIGHTS:
            return False
        traced = self.runs.run(state, path, name, {})
        return traced is not None and uses_values(
            traced[1], lambda p: p.rpartition(".")[0] in state.all or p in state.tensors
        )


def _is_left_out(event: Event, surgery: Surgery) -> bool:
    """Whether a call is made no more, nor is its method written anew."""
    return event in surgery.left_out and event.method not in surgery.methods.get(event.path, ())


def _is_written_out(event: Event, surgery: Surgery) -> bool:
    """Whether a method that was traced is called no more, since the method that called it was written anew."""
    around = event.parent
    made = None if around is None else surgery.methods.get(around.path, {}).get(around.method)
    return made is not None and event.method != "forward" and f".{event.method}(" not in made.source


def _unfollowed(site: Site, method: str) -> Refusal:
    sentence = f"{method} could not be followed and may use the modules of this region one by one"
    return Refusal(Code.UNTRACEABLE, sentence, (site.region.value.name,))
