"""What is kept for fallbacks, and whether that is worth it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, fx, nn

from reptool.capture.tracer import Recorder
from reptool.ir.trace import lowest_call
from reptool.plan.select import Region
from reptool.refusal import Code, Refusal
from reptool.rewrite.guard_inference import CannotGuardError
from reptool.surgery.fallbacks.fallback import Fallback, Keeping
from reptool.surgery.site import Site, Surgery


class Keeper:
    """Works out what each module keeps.

    Args:
        recorder: what traced the model.
        sites: the sites of the surgery.
        aliases: path of a module -> all paths of it.
        held: paths of modules that are also kept in plain attributes.
        force: whether a fallback may be dearer than what it saves.
    """

    def __init__(
        self, recorder: Recorder, sites: list[Site], aliases: dict[str, list[str]], held: set[str], force: bool
    ) -> None:
        self.recorder, self.sites, self.aliases, self.held, self.force = recorder, sites, aliases, held, force
        self.made: dict[str, Keeping] = {}
        self.spans = {s: span(s) for s in sites}

    def keep(self, fallback: Fallback, changed: dict[str, set[str] | None]) -> None:
        """Everything that is changed in what the original code of a fallback runs."""
        path, lead = fallback.path, f"{fallback.path}." if fallback.path else ""
        module = self.recorder.root.get_submodule(path)
        made = self.made.setdefault(path, Keeping(parts={"": set()}))
        made.saved += sum(s.region.before.total - s.region.after.total for s in fallback.sites)
        for other in sorted(p for s in self._undone(fallback, changed) for p in self.spans[s] & set(changed)):
            tensors, relative = changed[other], other[len(lead) :]
            if not f"{other}.".startswith(lead) or (tensors is None and not relative):
                raise CannotGuardError(f"it uses {full_path(self.recorder, other)!r}, which lies outside of it")
            if len(self.aliases.get(other, ())) > 1 or {path, other} & self.held:
                raise CannotGuardError(f"{full_path(self.recorder, other)!r} is held in several places")
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
            kept = (rerun if nodes else set()) | {p for s in undone for p in self.spans[s] & set(changed)}
            more = [s for s in inside if s not in undone and self.spans[s] & kept]
            if not more:
                return undone
            undone += more

    def dearer(self, found: Collection[Fallback], changed: dict[str, set[str] | None]) -> dict[Region, Refusal]:
        """The regions whose fallbacks would keep more than they save."""
        problems: dict[Region, Refusal] = {}
        for path, made in self.made.items():
            if self.force or made.saved > made.weights:
                continue
            sites = [s for f in found if f.path == path for s in f.sites]
            alone = [s for s in sites if s.region.before.total - s.region.after.total <= self._alone(s, changed)]
            for site in alone or sites:
                name = full_path(self.recorder, path)
                why = f"{name} would keep {made.weights:,} weights for a fallback to save {made.saved:,.0f}"
                problems[site.region] = Refusal(Code.DEARER, why, (site.region.value.name,))
        return problems

    def _alone(self, site: Site, changed: dict[str, set[str] | None]) -> int:
        paths = self.spans[site] & set(changed)
        parts = {p: names for p in paths if (names := changed[p]) is not None}
        return _weights(self.recorder.root, paths - set(parts), parts)[0]


def full_path(recorder: Recorder, path: str) -> str:
    """The path of a module in the whole model."""
    return ".".join(p for p in (recorder.prefix, path) if p) or "<root>"


def span(site: Site) -> set[str]:
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


def changed_by(surgery: Surgery) -> dict[str, set[str] | None]:
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
