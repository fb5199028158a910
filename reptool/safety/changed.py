"""The modules and tensors that a surgery changes, by path, and the code that may reach them."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cached_property

from torch import fx, nn

from reptool.ir.trace import Event, all_events
from reptool.pysource.used import used
from reptool.rewrite.answers import told_otherwise
from reptool.safety.weight_reads import WEIGHTS
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon
from reptool.surgery.traced import Pattern


class Changed:
    """What a surgery changes, by path."""

    def __init__(self, surgery: Surgery, surgeon: Surgeon) -> None:  # long: facts of one surgery, in one pass
        self.paths: dict[Site, set[str]] = {}
        self.tensors = set(surgery.dropped)
        self.told: set[tuple[str, str]] = set()  # attributes that a layer answers otherwise than what was in its place
        self.held: set[str] = set()  # the paths among `paths` that are tensors of a module, not modules
        self.gone = set(surgery.identities) | {s.slot for s in surgery.sites if s.slot is not None}
        self.rewritten = {(p, m) for p, ms in surgery.methods.items() for m in ms}
        self.rewritten |= {(p, "forward") for p in self.gone}
        self.rooted: set[Site] = set()  # those that take tensors of the root's own
        self.patterns: dict[Pattern, Site] = {}
        self.carried: dict[Site, int] = {}  # where the carrier stands among the operations
        self.open: set[str] = set()
        self.kinds: dict[str, str] = {}
        for site in surgery.sites:
            paths: set[str] = set()
            nodes = list(site.region.form.ops)
            above = [{e.path for e in n.meta["event"].ancestors() if e.method == "forward" and e.path} for n in nodes]
            for node, events in zip(nodes, above, strict=True):
                owners = surgeon.found.ops[node].owners
                behind = surgeon.found.own.get(node)
                if behind is not None and behind.bare.module:
                    paths.add(str(behind.norm.target))
                elif node.op == "call_module":
                    paths |= {str(node.target)} if owners else set()
                else:
                    held = {o for o in owners if "." in o}  # tensors of modules that are opened
                    self.rooted |= {site} if held != set(owners) else set()
                    self.held |= held
                    paths |= held
                paths |= events & self.gone
            if site.slot is None:
                self.tensors |= {f"{site.owner}.{n}" if site.owner else n for n in site.names if n}
                paths |= {t for t in self.tensors if t.rpartition(".")[0] == site.owner}
            else:
                paths.add(site.slot)
                if not site.reuse:
                    names = told_otherwise(surgeon.modules[site.slot], site.shape)
                    self.told |= {(site.slot, name) for name in names}
            self.paths[site] = paths
            ordered = surgeon.ordered(site.region.form)
            self.patterns[surgeon.pattern(ordered)] = site
            self.carried[site] = ordered.index(site.carrier)
            for path in paths:
                parent = path.rpartition(".")[0]
                while parent:
                    if not all(parent in events for events in above):
                        self.open.add(parent)
                    parent = parent.rpartition(".")[0]
        self._under: dict[str, Hashable] = {}
        self.weights = {t.rpartition(".")[2] for t in self.tensors | self.held} | WEIGHTS
        self.all = {p for paths in self.paths.values() for p in paths} | self.gone
        self.open |= self.gone | {""}
        self.key = (frozenset(self.patterns), frozenset(self.open), frozenset(self.all))
        self.above = {a for path in self.all for a in _above(path)}
        self.inside: dict[str, list[Site]] = {"": list(self.paths)}  # path -> sites with modules below it
        for site, paths in self.paths.items():
            for lead in {a for path in paths for a in _above(path)} - {""}:
                self.inside.setdefault(lead, []).append(site)
        for path, calls in surgeon.calls.items():
            outs = [c.output for c in calls if isinstance(c, Event) and c.method == "forward"]
            tensor = bool(outs) and all(isinstance(o, fx.Node) and o.meta.get("kind") == "tensor" for o in outs)
            self.kinds[path] = "tensor" if tensor else "unknown"

    def is_gone(self, path: str) -> bool:
        """Whether the module at a path is replaced, or lies inside of one that is."""
        return path in self.gone or not self.gone.isdisjoint(_above(path))

    def is_changed(self, tensor: str) -> bool:
        """Whether the tensor at a path is another one, or gone."""
        return tensor.rpartition(".")[0] in self.all or tensor in self.tensors

    def reads_told(self, top: Event) -> bool:
        """Whether code of a run that stays read an attribute that a layer answers otherwise now."""
        if not self.told:
            return False
        return any(
            (s.path, s.name) in self.told for e in all_events(top) if not self.is_gone(e.path) for s in e.settings
        )

    def parts(self, path: str) -> set[str]:
        """Names of the parts of a module that are changed, or inside of which something is."""
        return self._parts.get(path, set())

    @cached_property
    def _parts(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for path in self.above | self.all:
            around, _, name = path.rpartition(".")
            found.setdefault(around, set()).add(name)
        return found

    @cached_property
    def _said(self) -> dict[str, list[tuple[str, ...]]]:
        """By the path of each module around it: what is said of a path, which stands last."""
        facts: list[tuple[str, ...]] = [("open", p) for p in self.open]
        facts += [("changed", p) for p in self.all] + [("tensor", p) for p in self.tensors]
        facts += [("written", m, p) for p, m in self.rewritten] + [("told", n, p) for p, n in self.told]
        found: dict[str, list[tuple[str, ...]]] = {}
        for fact in facts:
            for around in {*_above(fact[-1]), fact[-1]}:
                found.setdefault(around, []).append(fact)
        return found

    @cached_property
    def _regions(self) -> dict[Site, Pattern]:
        return {site: pattern for pattern, site in self.patterns.items()}

    def under(self, path: str) -> Hashable:
        """What is changed in a module, by ways from there: equal for modules in which the same is changed.

        Args:
            path: of the module.
        """
        if path not in self._under:
            regions = frozenset(self._region(path, site) for site in self.inside.get(path, ()))
            facts = frozenset((*kind, _way(path, p)) for *kind, p in self._said.get(path, ()))
            self._under[path] = regions, facts
        return self._under[path]

    def _region(self, path: str, site: Site) -> Hashable:
        pattern = self._regions.get(site, ())
        ops = tuple((tuple(_way(path, o) for o in owners), *rest) for owners, *rest in pattern)
        places = frozenset(_way(path, p) for p in self.paths[site])
        slot = None if site.slot is None else _way(path, site.slot)
        return ops, places, slot, site.shape, self.carried[site], site.region.form.at

    def closed(self, path: str) -> str:
        """The kind of value a module gives whose inside other code may run as a whole; '' where it must be opened."""
        return "" if path in self.open else self.kinds.get(path, "unknown")


def _way(start: str, path: str) -> tuple[int, str]:
    """How a path is reached from another one: so many steps up, then a path."""
    here, there = start.split("."), path.split(".")
    common = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), min(len(here), len(there)))
    return len(here) - common, ".".join(there[common:])


def _above(path: str) -> list[str]:
    """The paths of everything that encloses a module."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def reached(
    state: Changed, at: str, module: nn.Module, method: str, judged: frozenset[str] = frozenset(), below: str = ""
) -> list[Site]:
    """Sites whose modules a method may use one by one.

    The gates stop such code when it runs. This says it in advance, where a region had better stay as it is or where its
    originals are kept: for code that could not be followed and that a model cannot do without, and for other answers.

    Args:
        state: what the surgery changes.
        at: path of the module, "" for the root.
        module: whose method it is.
        method: its name.
        judged: methods that are not followed.
        below: where in the module the root is, if it is a module around the root.
    """
    lead, paths = f"{at}." if at else "", {m: n for n, m in module.named_modules()}
    found = {(lead + paths[m]).rstrip(".") for m in used(method, module, judged) if m in paths}
    handed: set[Site] = set()
    if below:
        found = {p[len(below) + 1 :] for p in found if p.startswith(f"{below}.")}
        if any(paths.get(m) == below for m in used(method, module, judged, calls=False)):
            handed = state.rooted
    sites = state.inside.get(at, ())
    return [s for s in sites if s in handed or any(_uses(f, p, state) for p in state.paths[s] for f in found)]


def _uses(found: str, path: str, state: Changed) -> bool:
    """Whether code that has a module may run the one at a path by itself: as what it has, or as an item of it."""
    if found == path or (path.rpartition(".")[0] == found and path in state.held):
        return True
    if not path.startswith(f"{found}.") or found not in state.open:
        return False
    step = f"{found}.{path[len(found) + 1 :].partition('.')[0]}"
    return step == path or step in state.open
