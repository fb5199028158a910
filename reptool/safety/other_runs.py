"""Other runs: code that was not traced is run on symbolic values and must show the fused regions as the trace does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import fx, nn

from reptool.capture.evaluation.contained import contained
from reptool.capture.patching import between_traces
from reptool.capture.side_effects import as_new
from reptool.capture.tracer import Recorder
from reptool.ir.aliasing import resolve
from reptool.ir.ops import Affine, View
from reptool.ir.trace import Event, Input, Trace, all_events
from reptool.models.as_given import put_back
from reptool.models.copies import full_copy
from reptool.models.likeness import structure
from reptool.passages.own_affines import OwnAffines
from reptool.plan.candidates import analyse
from reptool.plan.cost import Price
from reptool.plan.inference.facts import Facts
from reptool.plan.select import Region
from reptool.pysource.functions import function_of
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import layer_of
from reptool.safety.changed import Changed
from reptool.safety.weight_reads import read_values, uses_values
from reptool.surgery.gating import calls
from reptool.surgery.site import Calls, Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.surgery.traced import Pattern, is_plain_identity

Run = tuple[Recorder, Trace | None]
"""What was seen of a method; no trace where it cannot be run to its end."""


@dataclass
class Seen:
    """What a run of a method does with the regions of a surgery.

    Args:
        differs: regions that it may use in another way.
        parts: those among them that it was seen to run in part.
        whole: those that it runs whole: pattern, place in that run, what was seen of it.
        weights: whether it uses tensors that are others now, or what layers say of themselves otherwise than before.
    """

    differs: frozenset[Site]
    parts: frozenset[Site]
    whole: list[tuple[Pattern, Site, Surgeon]]
    weights: bool


@dataclass
class Compared:
    """The same by the patterns of regions, for all surgeries with these regions."""

    differs: set[Pattern]
    parts: set[Pattern]
    whole: list[tuple[Pattern, Site, Surgeon]]
    weights: bool


class Runs:
    """Runs methods of a model on symbolic values, and compares what they do with a surgery.

    Args:
        surgeon: of the unit.
        values: whether values may be looked at.
    """

    def __init__(self, surgeon: Surgeon, values: bool) -> None:
        self.surgeon, self.values = surgeon, values
        self.trace = surgeon.trace
        self.copy: nn.Module | None = None
        self._put_back: dict[str, Callable[[], None] | None] = {}  # by the path of what was run
        self.shown: set[Pattern] = set()  # patterns that other code runs whole, and gives a value between
        self._like: Recorder | None = None
        self._runs: dict[Any, list[tuple[dict[str, str], Run]]] = {}  # with what each was told of closed modules
        self._seen: dict[Any, Compared | None] = {}
        self._open: ExitStack | None = None
        self._structures: dict[str, Hashable | None] = {}
        self._same: dict[Hashable, bool] = {}  # whether a run of modules that are alike shows the same regions

    @contextmanager
    def together(self) -> Iterator[None]:
        """For runs one after another, which share what is patched."""
        with ExitStack() as self._open:
            try:
                yield
            finally:
                self._open = None

    def seen(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> Seen | None:
        """What a method does with the regions; None when it cannot be run."""
        key = self._key(state, path, name, flags)
        if key not in self._seen:
            recorder, trace = self._traced(state, path, name, flags)
            self._seen[key] = None if trace is None else self._compared(state, recorder, trace)
        made = self._seen[key]
        if made is None:
            return None
        differs, parts = (frozenset(state.patterns[p] for p in held) for held in (made.differs, made.parts))
        return Seen(differs, parts, made.whole, made.weights)

    def differs(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> frozenset[Site] | None:
        """Sites that a method uses in another way; None when it cannot be run."""
        seen = self.seen(state, path, name, flags)
        return None if seen is None else seen.differs

    def read_weights(self, state: Changed, path: str, name: str) -> bool:
        """Whether a method that cannot be run had read weights that are others now."""
        recorder, trace = self._traced(state, path, name, {})
        return trace is None and read_values(recorder.graph, state.is_changed)

    def _traced(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> Run:
        """One run of a method, which is the same for every surgery that opens the same modules on its way."""
        known = self._runs.setdefault(_given(path, name, flags), [])
        for told, run in known:
            if all(state.closed(p) == kind for p, kind in told.items()):
                return run
        asked: dict[str, str] = {}
        known.append((asked, self.run(state, path, name, flags, asked)))
        return known[-1][1]

    def _key(self, state: Changed, path: str, name: str, flags: Any) -> Any:
        return _given(path, name, flags), state.key

    def calls(self, state: Changed, path: str, name: str, surgery: Surgery) -> Iterator[Calls]:
        """The calls in which a method, which was run, runs regions whole."""
        seen = self.seen(state, path, name, {})
        whole = [] if seen is None else seen.whole
        for surgeon in dict.fromkeys(s for _, _, s in whole):
            yield from calls(surgeon, surgery, [(s, state.patterns[p]) for p, s, made in whole if made is surgeon])

    def same(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> bool:
        """Whether a method shows the same regions, as one of a module that is alike did."""
        like = self.likeness(state, path, name, flags)
        if like is not None and like in self._same:
            return self._same[like]
        found = self.differs(state, path, name, flags) == frozenset()
        if like is not None and (not found or _speaks_for_others(path, *self._traced(state, path, name, flags))):
            self._same[like] = found
        return found

    def likeness(self, state: Changed, path: str, name: str, flags: dict[str, Any]) -> Hashable | None:
        """All that decides whether a method shows the same regions; None where each module has to be looked at."""
        lead = f"{path}."
        if path not in self._structures:
            self._structures[path] = None if path in self._apart else structure(self.surgeon.modules[path])
        built = self._structures[path]
        if built is None:
            return None
        closed = [state.closed(lead + p) for p, _ in self.surgeon.modules[path].named_modules() if p]
        return _given("", name, flags), built, state.under(path), tuple(closed)

    @cached_property
    def _apart(self) -> set[str]:
        """Modules with something in them that others hold, that somebody watches, or that the caller named."""
        surgeon = self.surgeon
        found = {*surgeon.tied, *surgeon.held, *surgeon.hooked, *surgeon.found.facts.recorder.named}
        return {".".join(p.split(".")[:i]) for p in found for i in range(p.count(".") + 2)}

    def run(self, state: Changed, path: str, name: str, flags: dict[str, Any], asked: dict[str, str]) -> Run:
        """One run of a method.

        Args:
            state: what the surgery changes.
            path: of the module.
            name: of the method.
            flags: arguments that are no data.
            asked: filled by what was asked of modules on the way.

        Returns:
            What was seen.
        """
        if self._open is not None:
            self._open.enter_context(between_traces())
            self._open = None
        root = self._own(path)
        args, kwargs = _arguments(function_of(type(root.get_submodule(path)), name), flags)
        recorder = self._like = Recorder(root, self.trace.prefix, like=self._like)
        like = self.surgeon.found.facts.recorder
        recorder.named, recorder.own_functions = like.named, like.own_functions
        recorder.closed = lambda path: asked.setdefault(path, state.closed(path))
        try:
            with contained(), as_new():
                return recorder, recorder.run(tuple(args), kwargs, path, name)
        except Exception:
            return recorder, None
        finally:
            self._as_it_was(path)

    def _own(self, path: str) -> nn.Module:
        """A copy that shares nothing: what is run here cannot change the user's weights.

        Args:
            path: of the module whose method is run: where it leads to nothing but what is in it, no more is put back.
        """
        if self.copy is None:
            self.copy = full_copy(self.trace.root)
        if path not in self._put_back:
            found = put_back(self.copy.get_submodule(path), alone=True) if path else None
            if found is None and "" not in self._put_back:
                self._put_back[""] = put_back(self.copy)
            self._put_back[path] = found or self._put_back[""]
        return self.copy

    def _as_it_was(self, path: str) -> None:
        """What one method changed, the next one does not find."""
        restore = self._put_back[path]
        if restore is None:
            self.copy, self._like = None, None
            self._put_back.clear()
        else:
            restore()

    def _compared(self, state: Changed, recorder: Recorder, trace: Trace) -> Compared:
        """What a run does with the regions of a surgery."""
        asks = any(e.questions for e in all_events(trace.top))
        if asks or set(trace.opaque) & state.open or _sets_layers(recorder, trace):
            weights = uses_values(trace, state.is_changed) or state.reads_told(trace.top)
            return Compared(set(state.patterns), set(), [], weights)
        reads = resolve(trace.graph)
        facts = Facts(recorder, reads, {}, self.surgeon.found.facts.responses)
        found = analyse(trace.graph, reads, facts, {}, trace.escaped, self.values, affines=OwnAffines(), several=True)
        surgeon = Surgeon(trace, found, self.surgeon.hooked, self.surgeon.tied, self.surgeon.held)
        sites = list(self._instances(state, surgeon))
        bad = surgeon.check(sites)
        patterns = {s.region: surgeon.pattern(surgeon.ordered(s.region.form)) for s in sites}
        self.shown |= {p for r, p in patterns.items() if r in bad and bad[r].code is Code.READ_ELSEWHERE}
        out, parts = set[Pattern](), {p for r, p in patterns.items() if r in bad}
        covered = {n for s in sites for n in s.region.form.ops}
        covered |= {b.norm for b in found.own.values() if covered.issuperset(b.nodes.values())}
        for node in trace.graph.nodes:
            target, used = str(node.target), set[fx.Node]()
            if node.op == "call_module" and target in state.all:
                used = set(surgeon.const_users(node)) if node.meta["const"] else {node}
            elif node.op == "get_attr" and state.is_changed(target):
                used = set(surgeon.const_users(node))
            if not used <= covered:
                owner = target if node.op == "call_module" else target.rpartition(".")[0]
                mine = {p for p, s in state.patterns.items() if {owner, target} & state.paths[s]}
                parts |= mine
                out |= mine or set(state.patterns)
        out |= parts
        whole = [(patterns[s.region], s, surgeon) for s in sites if patterns[s.region] not in out]
        weights = uses_values(trace, state.is_changed, covered) or state.reads_told(trace.top)
        return Compared(out, parts, whole, weights)

    def _instances(self, state: Changed, surgeon: Surgeon) -> Iterator[Site]:
        """The fused regions as they appear in another run."""
        for value, forms in surgeon.found.forms.items():
            for form in [f for own in forms.values() for f in (own, own.other) if f is not None]:
                ops = surgeon.ordered(form)
                known = state.patterns.get(surgeon.pattern(ops))
                if known is None:
                    continue
                form.at = known.region.form.at
                shape = layer_of(form)
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
        behind = surgeon.found.own.get(node)
        if behind is not None and behind.bare.module:
            return True
        if node.op == "call_module" or isinstance(op, View) or is_plain_identity(op, node):
            return True
        event: Event = node.meta["event"]
        return any((e.path, e.method) in state.rewritten for e in event.ancestors() if e.parent is not None)

    def in_series(self, site: Site) -> bool:
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


def _given(path: str, name: str, flags: dict[str, Any]) -> Any:
    return path, name, tuple((k, repr(v)) for k, v in flags.items())


def _speaks_for_others(path: str, recorder: Recorder, trace: Trace | None) -> bool:
    """Whether a run saw nothing but the structure of its own module: all modules of this structure run like it."""
    if trace is None or trace.opaque or trace.escaped or recorder.reads_constants or recorder.unsettled:
        return False
    events = list(all_events(trace.top))
    held = (str(n.target) for n in trace.graph.nodes if n.op == "call_module" or "tensor" in n.meta)
    paths = {*held, *(s.path for e in events for s in e.settings), *(e.path for e in events)}
    inside = all(p == path or p.startswith(f"{path}.") for p in paths)
    return inside and not any(e.questions or e.effects or e.between for e in events)


def _sets_layers(recorder: Recorder, trace: Trace) -> bool:
    """Whether code sets attributes of the layers that it runs."""
    return bool(recorder.unsettled) and any(id(n.meta.get("module")) in recorder.unsettled for n in trace.graph.nodes)


def _arguments(function: Any, flags: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for one run: the flags, and symbolic values for the data that a method must be given."""
    args: list[Any] = []
    kwargs: dict[str, Any] = dict(flags)
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
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
    return args, kwargs
