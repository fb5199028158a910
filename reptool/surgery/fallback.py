"""Fallbacks: methods that were specialized, and what has to be kept so that they still run as they were.

With `keep_fallback=True` a method whose code asked something (a size, a flag, a dtype) may be specialized: it begins
with a guard over its arguments, and where that does not hold it runs as it was on copies of the original layers.

Three conditions make that exact. No region lies across the border of the method. Every answer depends on its arguments
alone (`rewrite.guard_inference`). What its original code reaches is kept together, and none of it lies outside of the
module. The price: kept weights cost what weights cost, so the regions of a module have to save more than it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from reptool.capture.tracer import Recorder
from reptool.ir.trace import Event, lowest_call
from reptool.pysource.functions import behind
from reptool.refusal import Code, Refusal
from reptool.rewrite.constants import CannotCutError
from reptool.rewrite.guard_inference import CannotGuardError, Guard, guard
from reptool.rewrite.method_source import specialized_method
from reptool.rewrite.setting_checks import setting_checks
from reptool.runtime.originals import KEPT

if TYPE_CHECKING:
    from reptool.plan.select import Region
    from reptool.surgery.site import Site, Surgery

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_WALKS = {"children", "named_children", "modules", "named_modules", "_modules"}


@dataclass(eq=False)
class Fallback:
    """One method that is specialized.

    Args:
        path: of the module.
        method: its name.
        asked: per traced call, the calls inside it whose answers the new code relies on.
        sites: the sites for whose sake it is specialized.
        reached: sites whose layers its original code may use one by one.
        training: whether code that is specialized asks for `training`.
        guards: the arguments for which the new code runs.
        settings: what was read that has to be as it was.
    """

    path: str
    method: str
    asked: dict[Event, set[Event]] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    reached: list[Site] = field(default_factory=list)
    training: bool = False
    guards: list[Guard] = field(default_factory=list)
    settings: list[Any] = field(default_factory=list)


@dataclass
class Keeping:
    """What one module keeps for all of its fallbacks.

    Args:
        whole: paths in it of modules that are kept as they are.
        parts: paths in it of modules ("" is itself) -> names of their own tensors that are kept.
        weights: number of weights kept.
        size: their bytes.
        saved: the price of what its specialized regions save.
    """

    whole: set[str] = field(default_factory=set)
    parts: dict[str, set[str]] = field(default_factory=dict)
    weights: int = 0
    size: int = 0
    saved: float = 0.0


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
        self.calls = calls
        self.recorder, self.sites, self.aliases, self.held, self.force = recorder, sites, aliases, held, force
        self.found: dict[tuple[str, str], Fallback] = {}
        self.keeping: dict[str, Keeping] = {}
        self.rewritten: set[Event] = set()  # calls whose method is written anew
        self._spans = {s: _span(s) for s in sites}
        for site in sites:
            if site.asked:
                self.need(site.asked[0], site.asked[1:], [site])

    def place(self, path: str) -> str:
        """The path of a module in the whole model."""
        return ".".join(p for p in (self.recorder.prefix, path) if p) or "<root>"

    # --- what is needed
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
        inside = all(s.region.form.ops <= nodes for s in sites)
        return inside and all(s.region.form.ops <= nodes or not s.region.form.ops & nodes for s in self.sites)

    # --- all together
    def finish(self, surgery: Surgery) -> dict[Region, Refusal]:
        """Work out guards and what is kept; the regions for which that is impossible or too dear."""
        problems = self._mixed(surgery)
        changed = _changed(surgery)
        self.keeping = {}
        for fallback in self.found.values():
            problems |= self._worked_out(fallback, changed)
        return problems or self._dearer(changed)

    def _worked_out(self, fallback: Fallback, changed: dict[str, set[str] | None]) -> dict[Region, Refusal]:
        try:
            self._guard(fallback)
            self._keep(fallback, changed)
        except CannotGuardError as error:
            why = f"{self.place(fallback.path)}.{fallback.method} cannot be specialized: {error}"
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
                why = f"{self.place(path)}.{name} runs differently in different places"
                for site in (s for s in self.sites if path in self._spans[s]):
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
            made = guard(place, [q for e in asked for q in (*e.questions, *e.minor)], self.recorder)
            if made not in fallback.guards:
                fallback.guards.append(made)
            fallback.training |= any(_asks_training(e) for e in asked)

    def _keep(self, fallback: Fallback, changed: dict[str, set[str] | None]) -> None:
        """Everything that is changed in what the original code of a fallback runs."""
        path, lead = fallback.path, f"{fallback.path}." if fallback.path else ""
        module = self.recorder.root.get_submodule(path)
        made = self.keeping.setdefault(path, Keeping(parts={"": set()}))
        made.saved += sum(s.region.before.total - s.region.after.total for s in fallback.sites)
        for other in sorted(p for s in self._undone(fallback, changed) for p in self._spans[s] & set(changed)):
            tensors, relative = changed[other], other[len(lead) :]
            if not f"{other}.".startswith(lead) or (tensors is None and not relative):
                raise CannotGuardError(f"it uses {self.place(other)!r}, which lies outside of it")
            if len(self.aliases.get(other, ())) > 1 or {path, other} & self.held:
                raise CannotGuardError(f"{self.place(other)!r} is held in several places")
            if tensors is None:
                made.whole.add(relative)
            else:
                made.parts.setdefault(relative, set()).update(_own(module.get_submodule(relative), tensors))
        made.weights, made.size = _weights(module, made.whole, made.parts)

    def _undone(self, fallback: Fallback, changed: dict[str, set[str] | None]) -> list[Site]:
        """The sites whose layers have to be there as they were, for the original code."""
        rerun = {fallback.path} | {e.path for asked in fallback.asked.values() for e in asked}
        nodes = {n for e in fallback.asked for n in e.nodes()}
        inside = [s for s in self.sites if s.region.form.ops & nodes or not nodes]
        undone = list(dict.fromkeys([*fallback.sites, *fallback.reached]))
        while True:
            kept = (rerun if nodes else set()) | {p for s in undone for p in self._spans[s] & set(changed)}
            more = [s for s in inside if s not in undone and self._spans[s] & kept]
            if not more:
                return undone
            undone += more

    def _dearer(self, changed: dict[str, set[str] | None]) -> dict[Region, Refusal]:
        problems: dict[Region, Refusal] = {}
        for path, made in self.keeping.items():
            if self.force or made.saved > made.weights:
                continue
            sites = [s for f in self.found.values() if f.path == path for s in f.sites]
            alone = [s for s in sites if s.region.before.total - s.region.after.total <= self._alone(s, changed)]
            for site in alone or sites:
                problems[site.region] = Refusal(
                    Code.DEARER,
                    f"{self.place(path)} would keep {made.weights:,} weights for a fallback to save {made.saved:,.0f}",
                    (site.region.value.name,),
                )
        return problems

    def _alone(self, site: Site, changed: dict[str, set[str] | None]) -> int:
        paths = self._spans[site] & set(changed)
        parts = {p: names for p in paths if (names := changed[p]) is not None}
        return _weights(self.recorder.root, paths - set(parts), parts)[0]

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
                refusal = Refusal(Code.METHOD, f"{self.place(path)}.{name}: {error}", (self.place(path),))
                return {s.region: refusal for s in fallback.sites or fallback.reached}
            if fallback.asked:
                surgery.events.setdefault(path, next(iter(fallback.asked)))
        surgery.keeping = self.keeping
        return {}


# --- small questions ------------------------------------------------------------------------------------------------
def _span(site: Site) -> set[str]:
    """Paths of the modules that a region calls and of those whose code it runs in."""
    out = {str(n.target) for n in site.region.form.ops if n.op == "call_module"}
    out |= {e.path for e in lowest_call(site.region.form.ops)[1]}
    out |= {str(n.meta["share_of"].target) for n in site.region.form.ops if _is_of_module(n)}
    if site.slot is not None:
        out.add(site.slot)
    return out | ({site.owner} if site.slot is None else set())


def _is_of_module(node: fx.Node) -> bool:
    """Whether this stands for the scale and shift of a norm that is called as a module."""
    return "passed" in node.meta and node.meta["share_of"].op == "call_module"


def _changed(surgery: Surgery) -> dict[str, set[str] | None]:
    """Path of each module that a surgery changes -> its own tensors that change, None where it is replaced."""
    out: dict[str, set[str] | None] = {p: set() for p in surgery.methods}
    for tensor in surgery.dropped:
        owner, _, name = tensor.rpartition(".")
        out[owner] = (out.get(owner) or set()) | {name}
    for site in surgery.sites:
        if site.slot is None:
            out[site.owner] = (out.get(site.owner) or set()) | {n for n in site.names if n}
    out |= {s.slot: None for s in surgery.sites if s.slot is not None}
    out |= dict.fromkeys(surgery.identities)
    return out


def _own(module: nn.Module, names: set[str]) -> set[str]:
    """Those names that are tensors of the module itself; the others come with the surgery."""
    own = {n for n in names if n in module._parameters or n in module._buffers}
    for name in names - own:
        if name in module.__dict__ or name in module._modules:
            raise CannotGuardError(f"{name!r} is computed")
    return own


def _weights(module: nn.Module, whole: set[str], parts: dict[str, set[str]]) -> tuple[int, int]:
    """Number and bytes of the tensors in these modules and of those named."""
    tensors: dict[int, Tensor] = {}
    for path in whole:
        tensors |= {id(t): t for t in _tensors(module.get_submodule(path))}
    for path, names in parts.items():
        own = module.get_submodule(path)
        tensors |= {id(t): t for n in names for t in (own._parameters.get(n, own._buffers.get(n)),) if t is not None}
    return sum(t.numel() for t in tensors.values()), sum(t.numel() * t.element_size() for t in tensors.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _walks(event: Event) -> bool:
    """Whether code goes through all children of a module: one more among them would be run as well."""
    return bool(_WALKS & set(_names(event)))


def _names(event: Event) -> tuple[str, ...]:
    functions = behind(getattr(type(event.module), event.method))
    return tuple(name for f in functions for name in f.__code__.co_names)


def _asks_training(event: Event) -> bool:
    return "training" in _names(event)
