"""Lookups on one trace: its calls, who reads which tensor, which operations are still computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from reptool.ir.nodes import metadata_read, name_of
from reptool.ir.ops import Affine, HandedOn, Op, Unmoved, View
from reptool.ir.trace import Event, Trace, all_events
from reptool.ir.walk import nodes_in
from reptool.plan.candidates import Analysis
from reptool.plan.forms import Form
from reptool.refusal import Refusal
from reptool.rewrite.lower import Geometry, geometry
from reptool.surgery.site import Site

Pattern = tuple[tuple[Any, ...], ...]
"""What the operations of a region do, each with the paths of what it belongs to first."""

if TYPE_CHECKING:
    from reptool.surgery.fallbacks.fallbacks import Fallbacks


class Traced:
    """What is known of one trace, and the questions that all of surgery asks of it.

    Args:
        trace: what was seen.
        found: what its nodes and values are.
        hooked: paths of modules with hooks of the user's.
        tied: path of a tensor or module -> the other paths of shared tensors.
        held: paths of modules that are also kept in plain attributes.
        fallbacks: works out the fallbacks of a surgery; None where nothing may be specialized.
        fixed: full path of a module and name of its method that must not be written anew, and why.
    """

    def __init__(
        self,
        trace: Trace,
        found: Analysis,
        hooked: set[str],
        tied: dict[str, set[str]],
        held: set[str],
        fallbacks: Callable[[list[Site], dict[str, list[str]]], Fallbacks] | None = None,
        fixed: Mapping[tuple[str, str], Refusal] = MappingProxyType({}),
    ) -> None:
        self.fallbacks, self.fixed = fallbacks, fixed
        self.trace, self.found, self.hooked, self.tied, self.held = trace, found, hooked, tied, held
        self.reads = found.reads
        self.calls: dict[str, list[fx.Node | Event]] = {}
        self._collect(trace.top)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module of the root by its first path."""
        return dict(self.trace.root.named_modules())

    @cached_property
    def aliases(self) -> dict[str, list[str]]:
        """First path of a module -> all of its paths."""
        found: dict[str, list[str]] = {}
        first: dict[int, str] = {}
        for name, module in self.trace.root.named_modules(remove_duplicate=False):
            found.setdefault(first.setdefault(id(module), name), []).append(name)
        return found

    def _collect(self, event: Event) -> None:
        self.calls.setdefault(event.path, []).append(event)
        for item in event.items:
            if isinstance(item, Event):
                self._collect(item)
            elif item.op == "call_module":
                self.calls.setdefault(str(item.target), []).append(item)

    def alive(self, sites: list[Site]) -> set[fx.Node]:
        """Operations still computed as they stand."""
        fused = {s.region.value: s for s in sites}
        groups = [g for v, g in self.found.groups.items() if v in fused]
        instead = {(n, t): g.value for g in groups for n in g.tree.ops for t in g.terms}
        live: set[fx.Node] = set()
        stack = list(self.found.wanted)
        while stack:
            node = stack.pop()
            if node in live:
                continue
            if node in fused:
                stack += fused[node].region.form.reads
                continue
            live.add(node)
            op = self.found.ops.get(node)
            if op is not None:
                stack += [instead.get((node, s), s) for s in op.sources] if instead else op.sources
        return live

    def attributes_of(self, owner: str) -> list[fx.Node]:
        """The reads of a tensor, or of the tensors of a module."""
        return self._getattrs.get(owner, [])

    @cached_property
    def _getattrs(self) -> dict[str, list[fx.Node]]:
        found: dict[str, list[fx.Node]] = {}
        for n in self.trace.graph.nodes:
            if n.op == "get_attr":
                path = str(n.target)
                found.setdefault(path, []).append(n)
                found.setdefault(path.rpartition(".")[0], []).append(n)
        return found

    @cached_property
    def givers(self) -> dict[fx.Node, list[Event]]:
        """Parameters and buffers that a call inside gives to its caller, also in a constant made of them."""
        found: dict[fx.Node, list[Event]] = {}
        for event in all_events(self.trace.top):
            stack = [n for n in nodes_in(event.output) if n.meta["const"]] if event is not self.trace.top else []
            seen = set(stack)
            while stack:
                node = stack.pop()
                if node.op == "get_attr":
                    found.setdefault(node, []).append(event)
                fresh = [n for n in node.all_input_nodes if n not in seen]
                seen.update(fresh)
                stack += fresh
        return found

    def const_users(self, node: fx.Node, *, sizes: bool = False) -> list[fx.Node]:
        """Operations on data that a constant ends up in, also by its `sizes` alone if asked."""
        out: list[fx.Node] = []
        stack, seen = [node], {node}
        while stack:
            n = stack.pop()
            for user in n.users:
                if user in seen or (metadata_read(user) and not sizes):
                    continue
                seen.add(user)
                if user.meta["const"]:
                    stack.append(user)
                else:
                    out.append(user)
        return out

    def signature(self, site: Site) -> object:
        """What two regions have to have in common to be served by one layer."""
        return site.slot, self._tensors(site), self.pattern(self.ordered(site.region.form))

    def _tensors(self, site: Site) -> object:
        """The shape of a layer; of a functional one that goes on as it is called, the shape of its tensors."""
        shape = site.shape
        own = geometry(self.found.ops[site.carrier].shape) if site.slot is None else None  # type: ignore[union-attr]
        if isinstance(own, Geometry) and replace(own, in_channels=0, out_channels=0, groups=0) == replace(
            shape, in_channels=0, out_channels=0, groups=0
        ):
            return shape.kind, shape.in_channels, shape.out_channels, shape.kernel_size, shape.groups
        return shape

    def ordered(self, form: Form) -> list[fx.Node]:
        """The operations of a form in the order in which they run."""
        return sorted(form.ops, key=self.reads.position.__getitem__)

    def between(self, site: Site) -> set[fx.Node]:
        """Operations that only rearrange values of a region, and stay: each has another value before and behind it."""
        ops = site.region.form.ops
        found = {n for n in ops if isinstance(self.found.ops[n], View)}
        return found | {n for s in self.found.spreads if not ops.isdisjoint(s.shares) for n in s.tree}

    def pattern(self, ops: list[fx.Node]) -> Pattern:
        """What operations do and whose values they use, whatever the nodes are called."""
        shares = self.found.shares
        return tuple(
            (self.found.ops[n].owners, name_of(n), self.found.ops[n].paradigm, shares[n].at(n) if n in shares else None)
            for n in ops
        )


def holders(op: Op) -> set[str]:
    """Paths of the modules that hold the tensors which an operation reads."""
    return {owner.rpartition(".")[0] for owner in op.owners}


def is_plain_identity(op: Op | None, node: fx.Node) -> bool:
    """An operation that hands its input on as it is: it may stay where it stands."""
    handed = isinstance(op, HandedOn) and node.op != "call_module"  # it is what it was until it is left out
    sized = isinstance(op, Unmoved) and not op.follows  # of another number of channels or positions it is none
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.owners and not handed and not sized
