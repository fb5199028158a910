"""Norms that still run: which norms and computed weights a plan leaves running, and which no call ran at all.

Norms are counted where they are executed. One that a written method no longer reads is gone, though its module is still
there; one of an auxiliary head that eval mode never calls does not count; one below code that could not be followed
may run, and counts.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field

from torch import fx, nn

from reptool.ir.computed_weights import has_computed_weight
from reptool.ir.nodes import metadata_read, name_of
from reptool.ir.trace import Event, all_events
from reptool.pysource.places import asked, place_of
from reptool.refusal import Code, Refusal
from reptool.report.left import is_compiled_norm, is_norm
from reptool.runtime.expect import KEPT
from reptool.surgery.units import Plan, Unit


@dataclass
class Running:
    """What becomes of the norms of a model.

    Args:
        before: paths of the batch norms that run; one that is a function by its module and name.
        after: those of them that still run.
        unused: paths of norms that no call ran.
        refusals: norms and computed weights in code that could not be followed.
    """

    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def running(model: nn.Module, plan: Plan) -> Running:
    """What becomes of the norms of a model when a plan is carried out.

    Args:
        model: the model that was planned.
        plan: everything that was worked out for it.
    """
    out, seen = Running(), _Seen(model, plan)
    for path, module in model.named_modules():
        norm, batch = is_norm(module), _is_batch_norm(module)
        if KEPT in path.split(".") or not (norm or batch or has_computed_weight(module)):
            continue
        name, users = path or "<root>", seen.users.get(path)
        around = seen.around(path) if users is None else None
        doubt = seen.doubt(path) if users is None and around is None and (norm or batch) else None
        if around is not None:
            out.refusals.append(Refusal(Code.UNTRACEABLE, around, (name,)))
        elif doubt is not None:
            out.refusals.append(Refusal(Code.SPECIALIZED, f"no call that was seen runs it, but {doubt}", (name,)))
        elif users is None:
            out.unused += [name] if norm or batch else []
        if batch and name not in out.unused:
            out.before.append(name)
            out.after += [name] if users is None or any(map(seen.runs, users)) else []
    said = {n.replace("<root>", "") for r in plan.unseen for n in r.nodes}
    for path in (p for p in plan.untraced if p not in said):
        own = _own_tensors(model, path, plan.untraced[path])
        out.refusals += [] if own is None else [own]
    for node in seen.functions:
        out.before.append(place_of(node))
        out.after += [place_of(node)] if seen.runs(node) else []
    return out


def _has_fallback(event: Event, unit: Unit) -> bool:
    """Whether a call lies in one whose method runs as it was where an answer is another."""
    fallbacks = unit.surgery.fallbacks
    return fallbacks is not None and any((e.path, e.method) in fallbacks.found for e in event.ancestors())


def _left_out(event: Event) -> list[str]:
    """The parameters of a call that nobody gave."""
    signature = inspect.signature(getattr(type(event.module), event.method))
    try:
        given = signature.bind(event.module, *event.args, **event.kwargs).arguments
    except TypeError:
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in signature.parameters.items() if n not in given and p.kind not in variadic]


def _own_tensors(model: nn.Module, path: str, why: str) -> Refusal | None:
    """What code that was not followed does with parameters of its own module: perhaps it scales by them."""
    module = model.get_submodule(path)
    own = [n for n, p in module._parameters.items() if p is not None and p.is_floating_point()]
    if not own or is_norm(module) or _is_batch_norm(module):
        return None
    sentence = f"{path or '<root>'} could not be followed: {why}; what it does with {', '.join(own)} was not seen"
    return Refusal(Code.UNTRACEABLE, sentence, (path or "<root>",))


def _is_batch_norm(module: nn.Module | None) -> bool:
    """Whether this is a batch norm of torch, also one that `torch.jit.script` compiled."""
    compiled = module is not None and is_compiled_norm(module) and "BatchNorm" in str(module.original_name)
    return compiled or isinstance(module, nn.modules.batchnorm._BatchNorm)


class _Seen:
    """Who was seen to call or read the modules of a model, by the first of their paths."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        first = {id(m): p for p, m in model.named_modules()}
        self.first = {p: first[id(m)] for p, m in self.modules.items()}
        self.users: dict[str, list[fx.Node]] = {}
        self.functions: list[fx.Node] = []  # batch norms that are functions, of tensors that no norm holds
        self.untraced, self.units = plan.untraced, dict[fx.Node, Unit]()
        self.events: dict[str, list[tuple[Event, Unit]]] = {}
        self.leaves: dict[str, str] = {}  # modules that are called as a whole, and their classes
        for unit in plan.units:
            for event in all_events(unit.trace.top):
                path = self._path(unit, event.path)
                self.users.setdefault(path, [])
                self.events.setdefault(path, []).append((event, unit))
            self._look(unit)

    def _path(self, unit: Unit, path: str) -> str:
        full = ".".join(p for p in (unit.prefix, path) if p)
        return self.first.get(full, full)

    def _look(self, unit: Unit) -> None:
        made_of: dict[fx.Node, set[str]] = {}  # constants -> the modules that hold what they are made of
        for node in unit.trace.graph.nodes:
            if node.meta.get("share") or node.op in ("placeholder", "output"):
                continue
            self.units[node] = unit
            owners = {o for n in node.all_input_nodes if not metadata_read(n) for o in made_of.get(n, ())}
            if node.op == "get_attr":
                owners = {self._path(unit, str(node.target).rpartition(".")[0])}
            if node.op == "call_module":
                path = self._path(unit, str(node.target))
                self.leaves[path] = type(node.meta["module"]).__name__
                owners.add(path)
            if node.meta["const"]:
                made_of[node] = owners
                continue
            for owner in owners:
                self.users.setdefault(owner, []).append(node)
            held = any(_is_batch_norm(self.modules.get(o)) for o in owners)
            if name_of(node) == "batch_norm" and not held:
                self.functions.append(node)

    def around(self, path: str) -> str | None:
        """What a module lies in that was called as a whole, so that nobody saw whether it runs; None if in nothing."""
        parts = path.split(".")
        for i in range(len(parts), -1, -1):
            outer = ".".join(parts[:i])
            if outer in self.untraced:
                return f"{outer or '<root>'} could not be followed: {self.untraced[outer]}"
            if outer in self.leaves and i < len(parts):
                return f"it stands inside of {outer or '<root>'}, a {self.leaves[outer]} whose code is not opened"
        return None

    def doubt(self, path: str) -> str | None:
        """Why the code around a module that was not called may call it another time; None where it never does."""
        parts = path.split(".")
        called = (self.events[p] for i in range(len(parts) - 1, -1, -1) if (p := ".".join(parts[:i])) in self.events)
        for event, unit in next(called, []):
            if _has_fallback(event, unit):
                continue  # with another answer the original code runs, on what is kept for it
            for question in event.questions:
                return f"{event.function} asks for {asked(question)}; with another answer it may"
            left_out = [] if unit.trace.shown or event.parent is not None else _left_out(event)
            if left_out:
                return f"{event.function} may be given {left_out[0]!r}; give example_inputs"
        return None

    def runs(self, node: fx.Node) -> bool:
        """Whether an operation is still computed as it stands."""
        unit = self.units[node]
        if any(s.norm is node for s in unit.found.spreads):
            return False  # the parts in front of it have it
        return node in unit.alive or node not in unit.found.ops
