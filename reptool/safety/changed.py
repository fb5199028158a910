"""The modules and tensors that a surgery changes, by path, and the code that may reach them."""

from __future__ import annotations

from torch import fx

from reptool.ir.trace import Event
from reptool.pysource.elements import only_called
from reptool.safety.names_read import Loads
from reptool.surgery.site import Site, Surgery
from reptool.surgery.surgeon import Surgeon

_DEEP_WALKS = {"modules", "named_modules", "get_submodule"}


class Changed:
    """What a surgery changes, by path."""

    def __init__(self, surgery: Surgery, surgeon: Surgeon) -> None:  # long: facts of one surgery, in one pass
        self.paths: dict[Site, set[str]] = {}
        self.tensors = set(surgery.dropped)
        self.held: set[str] = set()  # the paths among `paths` that are tensors of a module, not modules
        self.gone = set(surgery.identities) | {s.slot for s in surgery.sites if s.slot is not None}
        self.rewritten = {(p, m) for p, ms in surgery.methods.items() for m in ms}
        self.rewritten |= {(p, "forward") for p in self.gone}
        self.patterns: dict[object, Site] = {}
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
                    self.held |= held
                    paths |= held
                paths |= events & self.gone
            if site.slot is None:
                self.tensors |= {f"{site.owner}.{n}" if site.owner else n for n in site.names if n}
                paths |= {t for t in self.tensors if t.rpartition(".")[0] == site.owner}
            else:
                paths.add(site.slot)
            self.paths[site] = paths
            self.patterns[surgeon.pattern(surgeon.ordered(site.region.form))] = site
            for path in paths:
                parent = path.rpartition(".")[0]
                while parent:
                    if not all(parent in events for events in above):
                        self.open.add(parent)
                    parent = parent.rpartition(".")[0]
        self.all = {p for paths in self.paths.values() for p in paths} | self.gone
        self.open |= self.gone | {""}
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

    def closed(self, path: str) -> str:
        """The kind of value a module gives whose inside other code may run as a whole; '' where it must be opened."""
        return "" if path in self.open else self.kinds.get(path, "unknown")


def _above(path: str) -> list[str]:
    """The paths of everything that encloses a module."""
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def may_use(path: str, lead: str, state: Changed, read: Loads, prefix: str = "") -> bool:
    """Whether code of the module at `lead` that reads these names may use the module at `path` by itself."""
    if not path.startswith(lead):
        return False
    parts = path[len(lead) :].split(".")
    shut = [i for i in range(len(parts) - 1) if _is_shut(lead + ".".join(parts[: i + 1]), state, prefix)]
    if not prefix and not parts[0].isdigit() and parts[0] not in read.own and not read.walks:
        return False
    past = parts[shut[-1] + 1 :] if shut else parts
    named = {p for p in past if not p.isdigit()}
    if not shut:
        return bool(named & (read.own | read.other)) or bool(read.walks) or (not named and read.nested > 0)
    if read.walks & _DEEP_WALKS:
        return True
    if len(past) > 1 and path.removeprefix(f"{prefix}.") in state.held:
        named -= {parts[-1]}  # `x.weight` of whatever: the module that holds it has a name too
    if named & read.other:
        return True
    if not past[0].isdigit():
        return False  # what is not named can only be an element that is run by itself
    if shut[0] == 1 and not parts[0].isdigit() and all(only_called(f, parts[0]) for f in read.functions):
        return False
    holders = [p for p in parts[: shut[-1] + 1] if not p.isdigit()]
    if not holders or parts[shut[-1]].isdigit():
        return read.nested >= 2 and (not holders or holders[-1] in read.values)
    return holders[-1] in read.values


def runs_modules(read: Loads, paths: list[str]) -> bool:
    """Whether code that cannot be followed seems to call modules rather than read their attributes."""
    names = {part for path in paths for part in path.split(".")}
    return bool(read.called & names) or read.nested > 0 or bool(read.walks)


def _is_shut(path: str, state: Changed, prefix: str) -> bool:
    if prefix:
        if path == prefix or prefix.startswith(f"{path}."):
            return path == prefix
        path = path[len(prefix) + 1 :]
    return path not in state.open
