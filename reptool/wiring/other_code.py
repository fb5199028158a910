"""Wiring: other code that can reach the modules a surgery changes, and whether it uses them the same way.

A fused layer means "convolution, then norm" only for code that runs the convolution and then the norm. The trace shows
one way through the model; this file looks for the others: methods that were not called, the same method with other
flags, and code that could not be followed. Where the code names a changed module it is run on symbolic values too and
must show the same regions; where that cannot be shown, a method raises, a flag is guarded, or the region is given up.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from reptool._copies import full_copy
from reptool.analyse import analyse
from reptool.asked_kinds import asked_kinds
from reptool.capture import Recorder
from reptool.choose import Region
from reptool.facts import Facts
from reptool.function_text import behind
from reptool.listing import lists_tensors
from reptool.lower import geometry
from reptool.method_text import Method, guarded_method, sealed_method
from reptool.modes import MAX_TRIES, given, is_switch, offered, other_settings, own_settings, set_to, without, words_of
from reptool.module_kinds import stock_forward
from reptool.ops import Affine, View
from reptool.price import Price
from reptool.readings import WEIGHTS, computes_from
from reptool.reads import resolve
from reptool.refusal import Code, Refusal
from reptool.surgery import Site, Surgeon, Surgery, is_plain_identity
from reptool.trace import Event, Input, Trace, all_events
from reptool.walk import nodes_in
from reptool.wiring.changed import Changed, may_use, runs_modules
from reptool.wiring.loads import Loads, functions_of, loads, without_data

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class Found:
    """What other code asks of a surgery.

    Args:
        problems: regions that must be given up.
        methods: module path -> methods that now check their flags or raise.
    """

    problems: dict[Region, Refusal] = field(default_factory=dict)
    methods: dict[str, dict[str, Method]] = field(default_factory=dict)


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
        self.surgeon, self.ancestors, self.values = surgeon, ancestors, values
        self.trace = surgeon.trace
        self.prefix = f"{self.trace.prefix}." if self.trace.prefix else ""
        self.untraced = set(untraced)
        self.copy: nn.Module | None = None
        self._like: Recorder | None = None
        self._loads: dict[Any, Loads] = {}
        self._seen: dict[Any, set[object] | None] = {}
        self._shown: set[object] = set()  # patterns that other code runs whole, and gives a value between
        self._tries = 0

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
        self._flags(state, surgery, found)
        return found

    # --- reach
    def _loads_of(self, cls: type, name: str, judged: frozenset[str] = frozenset()) -> Loads:
        """Names read by a method and the methods of its class that it calls, apart from those `judged` elsewhere."""
        key = (cls, name, judged)
        if key not in self._loads:
            whole = Loads()
            queue, seen = [name], {name}
            while queue:
                function = inspect.getattr_static(cls, queue.pop(), None)
                if isinstance(function, property):
                    function = function.fget
                if not inspect.isfunction(function):
                    continue
                one = loads(function)
                whole.join(one)
                for called in one.own - seen - judged:
                    if inspect.getattr_static(cls, called, None) is not None and not hasattr(nn.Module, called):
                        seen.add(called)
                        queue.append(called)
            self._loads[key] = whole
        return self._loads[key]

    def _reached(self, state: Changed, at: str, read: Loads) -> list[Site]:
        """Sites whose modules the code of the module at `at` may use one by one (`at` relative, "" the root)."""
        lead = f"{at}." if at else ""
        sites = state.inside.get(at, ())
        return [s for s in sites if any(may_use(p, lead, state, read) for p in state.paths[s])]

    # --- code that could not be followed
    def _opaque(self, state: Changed, found: Found) -> None:
        above = [(p, m) for p, m in self.ancestors.items() if p != self.trace.prefix]
        for path, module in above:
            names = ["forward", *(n for n, _ in functions_of(type(module)))]
            inside = self.trace.prefix[len(path) :].lstrip(".")
            for name in names:
                read = self._loads_of(type(module), name)
                lists = name == "forward" and any(map(lists_tensors, read.functions))
                for site, paths in state.paths.items():
                    if lists or any(may_use(f"{inside}.{p}" if p else inside, "", state, read, inside) for p in paths):
                        found.problems[site.region] = _unfollowed(site, path, name)
        for full in self.untraced:
            if not full.startswith(self.prefix) or full == self.trace.prefix:
                continue
            path = full[len(self.prefix) :]
            inner = self.surgeon.modules.get(path)
            if inner is None or state.is_gone(path):
                continue
            read = self._loads_of(type(inner), "forward")
            sites = self._reached(state, path, read)
            if any(map(lists_tensors, read.functions)):
                sites = [s for s, ps in state.paths.items() if any(p.startswith(f"{path}.") or not path for p in ps)]
            for site in sites:
                found.problems[site.region] = _unfollowed(site, full, "forward")

    # --- the same method with other answers
    def _answers(self, state: Changed, surgery: Surgery, found: Found) -> None:
        """A method that asked something may use parts of a block one by one where the answer is another."""
        methods: dict[str, set[str]] = {}
        for event in all_events(self.trace.top):
            methods.setdefault(event.path, set()).add(event.method)
        for event in all_events(self.trace.top):
            questions = [*event.questions, *event.minor]
            if not questions or state.is_gone(event.path) or stock_forward(event.module):
                continue
            traced = frozenset(methods[event.path] - {event.method})
            read = self._loads_of(type(event.module), event.method, traced)
            for site in self._reached(state, event.path, read):
                if any(n.meta["event"] is event for n in site.region.form.ops):
                    continue  # its own operations: the surgeon has judged them
                if surgery.fallbacks is not None:
                    surgery.fallbacks.reach(event, site)
                    continue
                found.problems[site.region] = Refusal(
                    Code.SPECIALIZED,
                    f"{event.path or '<root>'}.{event.method} asks for the {questions[0].what} of "
                    f"{questions[0].node} and names parts of this region; with another answer it may run them "
                    "one by one",
                    (site.region.value.name,),
                )

    # --- code that asks what its modules are
    def _kinds(self, state: Changed, surgery: Surgery, found: Found) -> None:
        peeked: dict[tuple[str, str], set[str]] = {}
        for event in all_events(self.trace.top):
            peeked.setdefault((event.path, event.method), set()).update(event.peeked)
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
                asked, read = set(), read & made.read  # it is written anew, and asks for what is still in its text
            for site, paths in state.paths.items():
                others = paths - {site.slot} if site.reuse else paths
                if asked & paths or read & others or ("" in asked and any(p.startswith(lead) for p in paths)):
                    found.problems[site.region] = Refusal(
                        Code.SPECIALIZED,
                        f"{path or '<root>'}.{name} asks what kind of module an absorbed layer is, or for its "
                        "parameters",
                        (site.region.value.name,),
                    )

    # --- methods that were not called
    def _methods(self, state: Changed, surgery: Surgery, found: Found) -> None:
        called = {(e.path, e.method) for e in all_events(self.trace.top)}
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
                read = self._loads_of(type(module), name)
                stock = type(module).forward is nn.Sequential.forward and name == "forward"
                if stock:
                    sites = [s for s, paths in state.paths.items() if any(p.startswith(f"{path}.") for p in paths)]
                else:
                    sites = self._reached(state, path, read)
                differs = self._differs(state, path, name, {}) if sites else frozenset()
                if differs is None:
                    if not runs_modules(read, [p for s in sites for p in state.paths[s]]):
                        continue
                elif not differs:
                    continue
                elif not stock and not name.startswith("_") and all(map(self._in_series, differs)):
                    for site in differs:
                        found.problems[site.region] = _between(site, path, name)
                    continue
                if surgery.fallbacks is not None and surgery.fallbacks.redirect(path, name, sites):
                    continue
                method = sealed_method(type(module), name, path or "<root>")
                if method is not None:
                    found.methods.setdefault(path, {})[name] = method
            for name in without_data(type(module)):
                if (path, name) not in called and self._reads_weights(state, path, name):
                    method = sealed_method(type(module), name, path or "<root>")
                    if method is not None:
                        found.methods.setdefault(path, {})[name] = method

    def _reads_weights(self, state: Changed, path: str, name: str) -> bool:
        """Whether a method without arguments computes something from weights that are others now."""
        read = self._loads_of(type(self.surgeon.modules[path]), name)
        if not read.calls & WEIGHTS:
            return False
        traced = self._run(state, path, name, {})
        return traced is not None and computes_from(
            traced[1], lambda p: p.rpartition(".")[0] in state.all or p in state.tensors
        )

    def _in_series(self, site: Site) -> bool:
        """Whether a region joins layers that stand one behind the other: a value between them is gone."""
        ops = self.surgeon.ordered(site.region.form)
        layers = {n for n in ops if isinstance(op := self.surgeon.found.ops[n], Affine) and op.layer}
        for node in layers:
            stack, seen = list(self.surgeon.found.ops[node].sources), set[fx.Node]()
            while stack:
                n = stack.pop()
                if n in site.region.form.ops and n not in seen:
                    seen.add(n)
                    stack += self.surgeon.found.ops[n].sources
            if seen & layers:
                return True
        return False

    # --- the same method with other flags
    def _flags(self, state: Changed, surgery: Surgery, found: Found) -> None:
        events: dict[tuple[str, str], list[Event]] = {}
        for event in all_events(self.trace.top):
            events.setdefault((event.path, event.method), []).append(event)
        for (path, name), calls in events.items():
            module = calls[0].module
            function = inspect.getattr_static(type(module), name, None)
            if not inspect.isfunction(function) or state.is_gone(path) or stock_forward(module):
                continue
            if name in surgery.methods.get(path, {}):
                continue  # it is written anew, for the flags it was seen with
            sites = self._reached(state, path, self._loads_of(type(module), name))
            if not sites:
                continue
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
                if not all(self._same(state, path, name, {**base, f: w}) for w in without(f, v, function))
            }
            between: frozenset[Site] = frozenset()
            if surgery.fallbacks is None:
                between = self._shown_between(state, path, name, base, bad)
                between |= self._offered(state, function, calls, base, bad)
            for site in between:
                found.problems[site.region] = _between(site, path, name)
            if between:
                continue
            settings = self._settings(state, path, name, base)
            assumed = not self.trace.shown and any(e.parent is None for e in calls)
            unsure = assumed and bool(bad or needed)
            if not (bad or needed or settings):
                continue
            if surgery.fallbacks is not None and (bad or needed):
                for event in calls:
                    surgery.fallbacks.need(event, (), sites)
                continue
            method = None if unsure else guarded_method(type(module), name, bad, needed, settings)
            if method is not None:
                found.methods.setdefault(path, {})[name] = method
                continue
            what = sorted({*bad, *needed, *(f"self.{n}" for n in settings)})[0]
            for site in sites:
                found.problems[site.region] = Refusal(
                    Code.SPECIALIZED,
                    f"{path or '<root>'}.{name} may run other code with another {what!r}; "
                    "give example_inputs that show how it is called",
                    (site.region.value.name,),
                )

    def _settings(self, state: Changed, path: str, name: str, base: dict[str, Any]) -> dict[str, Any]:
        """Attributes of a module that make a method use its layers otherwise when they are set to something else."""
        module = self.surgeon.modules[path]
        read = self._loads_of(type(module), name)
        found = own_settings(module, read.own, read.other)
        if not found or self._tries > MAX_TRIES:
            return {}
        whole = self._same(state, path, name, base)
        layers = None if whole else self._layers(state, path, name, base, {})
        if not whole and layers is None:
            return {}
        out: dict[str, Any] = {}
        words = words_of(module, read.functions)
        for n, value in found.items():
            for other in other_settings(value, words):
                self._tries += 1
                if whole:
                    differs = bool(self._differs(state, path, name, base, {n: other}))
                else:
                    differs = self._layers(state, path, name, base, {n: other}) not in (layers, None)
                if differs:
                    out[n] = value
                    break
        return out

    def _layers(
        self, state: Changed, path: str, name: str, flags: dict[str, Any], settings: dict[str, Any]
    ) -> list[str] | None:
        """The changed layers that a method runs, in order; None when it cannot be run."""
        with set_to(self._own().get_submodule(path), settings):
            traced = self._run(state, path, name, flags)
        nodes = () if traced is None else traced[1].graph.nodes
        used = [str(n.target) for n in nodes if n.op in ("call_module", "get_attr")]
        changed = [t for t in used if t in state.all or t in state.tensors or t.rpartition(".")[0] in state.all]
        return None if traced is None else changed

    def _proven(self, state: Changed, path: str, name: str, base: dict[str, Any], flag: str) -> tuple[Any, ...]:
        """Other values of a flag with which the method shows the same regions; `Input` for any value."""
        value = base[flag]
        others = [not value] if type(value) is bool else [True, False, Input(flag)] if value is None else []
        same = [v for v in others if self._same(state, path, name, {**base, flag: v})]
        if type(value) is bool:
            return (Input,) if same else ()
        if same and all(any(v is s for s in same) for v in others):
            return (Input,)
        return tuple(v for v in same if not isinstance(v, Input))

    def _shown_between(
        self, state: Changed, path: str, name: str, base: dict[str, Any], bad: Iterable[str]
    ) -> frozenset[Site]:
        """Sites that only join layers in a row, which another flag gives the values between; none if it does more."""
        out: frozenset[Site] = frozenset()
        for flag in bad:
            if flag not in base or not (base[flag] is None or type(base[flag]) is bool):
                return frozenset()
            for value in (True, False):
                differs = self._differs(state, path, name, {**base, flag: value})
                if differs is None or not all(map(self._in_series, differs)):
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
                    out |= self._differs(state, first.path, first.method, {**base, flag: other}) or frozenset()
        return out & {site for pattern, site in state.patterns.items() if pattern in self._shown}

    # --- one run
    def _differs(
        self, state: Changed, path: str, name: str, flags: dict[str, Any], settings: dict[str, Any] | None = None
    ) -> frozenset[Site] | None:
        """Sites that a method uses in another way; None when it cannot be run."""
        changed = (frozenset(state.patterns), frozenset(state.open), frozenset(state.all))
        key = (path, name, tuple((k, repr(v)) for k, v in flags.items()), repr(settings), changed)
        if key not in self._seen:
            module = self._own().get_submodule(path)
            with set_to(module, settings or {}):
                traced = self._run(state, path, name, flags)
            self._seen[key] = None if traced is None else self._inconsistent(state, *traced)
        found = self._seen[key]
        return None if found is None else frozenset(state.patterns[p] for p in found if p in state.patterns)

    def _same(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> bool:
        """Whether a method shows the same regions."""
        return self._differs(state, path, name, flags) == frozenset()

    def _run(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> tuple[Recorder, Trace] | None:
        root = self._own()
        module = root.get_submodule(path)
        signature = inspect.signature(getattr(type(module), name))
        args: list[Any] = []
        kwargs: dict[str, Any] = dict(flags)
        for parameter in list(signature.parameters.values())[1:]:
            if parameter.name in flags and parameter.kind is parameter.VAR_POSITIONAL:
                args += kwargs.pop(parameter.name)
            elif parameter.name in flags:
                if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                    args.append(kwargs.pop(parameter.name))
            elif parameter.kind is parameter.VAR_POSITIONAL:
                args += [] if args else [Input(parameter.name)]
            elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
                if parameter.kind is parameter.KEYWORD_ONLY:
                    kwargs[parameter.name] = Input(parameter.name)
                else:
                    args.append(Input(parameter.name))
            elif not args and not kwargs and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                args.append(Input(parameter.name))
        recorder = self._like = Recorder(root, self.trace.prefix, like=self._like)
        recorder.closed, recorder.named = state.closed, self.surgeon.found.facts.recorder.named
        try:
            return recorder, recorder.run(tuple(args), kwargs, path, name)
        except Exception:
            return None

    def _own(self) -> nn.Module:
        """A copy that shares nothing: what is run here cannot change the user's weights."""
        if self.copy is None:
            self.copy = full_copy(self.trace.root)
        return self.copy

    def _inconsistent(self, state: Changed, recorder: Recorder, trace: Trace) -> set[object]:
        """Patterns of the fused regions whose modules a run uses in any other way."""
        asks = any(e.questions for e in all_events(trace.top))
        if asks or set(trace.opaque) & state.open or _sets_layers(recorder, trace):
            return set(state.patterns)
        reads = resolve(trace.graph)
        facts = Facts(recorder, reads, {}, self.surgeon.found.facts.responses)
        found = analyse(trace.graph, reads, facts, {}, trace.escaped, self.values)
        surgeon = Surgeon(trace, found, self.surgeon.hooked, self.surgeon.tied, self.surgeon.held)
        sites = list(self._instances(state, surgeon))
        bad = surgeon.check(sites)
        patterns = {s.region: surgeon.pattern(surgeon.ordered(s.region.form)) for s in sites if s.region in bad}
        self._shown |= {p for r, p in patterns.items() if bad[r].code is Code.READ_ELSEWHERE}
        out = set(patterns.values())
        covered = {n for s in sites for n in s.region.form.ops}
        for node in trace.graph.nodes:
            target, used = str(node.target), set[fx.Node]()
            if node.op == "call_module" and target in state.all:
                used = set(surgeon.const_users(node)) if node.meta["const"] else {node}
            elif node.op == "get_attr" and (target.rpartition(".")[0] in state.all or target in state.tensors):
                used = set(surgeon.const_users(node))
            if not used <= covered:
                owner = target if node.op == "call_module" else target.rpartition(".")[0]
                mine = {p for p, s in state.patterns.items() if {owner, target} & state.paths[s]}
                out |= mine or set(state.patterns)
        return out

    def _instances(self, state: Changed, surgeon: Surgeon) -> Iterator[Site]:
        """The fused regions as they appear in another run."""
        for value, forms in surgeon.found.forms.items():
            for form in forms.values():
                ops = surgeon.ordered(form)
                known = state.patterns.get(surgeon.pattern(ops))
                if known is None:
                    continue
                shape = geometry(form.shape)
                if isinstance(shape, Refusal) or shape != known.shape:
                    continue
                index = self.surgeon.ordered(known.region.form).index(known.carrier)
                site = surgeon.placed(Region(value, form, Price(), Price()), ops[index], shape)
                if isinstance(site, Refusal) or site.slot != known.slot:
                    continue
                if all(self._stays(n, surgeon, state) for n in ops):
                    yield site

    def _stays(self, node: fx.Node, surgeon: Surgeon, state: Changed) -> bool:
        """Whether the surgery also reaches this operation when it is run by other code."""
        op = surgeon.found.ops[node]
        if node.op == "call_module" or isinstance(op, View) or is_plain_identity(op, node):
            return True
        event: Event = node.meta["event"]
        return any((e.path, e.method) in state.rewritten for e in event.ancestors() if e.parent is not None)


def _unfollowed(site: Site, path: str, name: str) -> Refusal:
    return Refusal(
        Code.UNTRACEABLE,
        f"{path or '<root>'}.{name} could not be followed and may use the modules of this region one by one",
        (site.region.value.name,),
    )


def _sets_layers(recorder: Recorder, trace: Trace) -> bool:
    """Whether code sets attributes of the layers that it runs."""
    return bool(recorder.unsettled) and any(id(n.meta.get("module")) in recorder.unsettled for n in trace.graph.nodes)


def _between(site: Site, path: str, name: str) -> Refusal:
    return Refusal(
        Code.READ_ELSEWHERE,
        f"{path or '<root>'}.{name} gives a value between layers that would become one",
        (site.region.value.name,),
    )


def _flags_of(function: Callable[..., Any], calls: list[Event]) -> dict[str, list[Any]]:
    """Parameters that were given constants, with what was seen."""
    signature = inspect.signature(function)
    parts = behind(function)
    read = {i.argval for f in parts for i in dis.get_instructions(f) if i.opname.startswith("LOAD_")}
    read |= {name for value in read if isinstance(value, tuple) for name in value}
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
