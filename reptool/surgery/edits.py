"""Edits: which nodes are left out, which modules become `Absorbed`, which methods are written anew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.nodes import is_inert, name_of
from reptool.ir.ops import Affine, Concat, Op, Pieces, Stack, Sum, View
from reptool.ir.trace import Event
from reptool.lift.deformable import BIAS, WEIGHT
from reptool.passages.own_affines import Behind
from reptool.refusal import Code, Refusal
from reptool.rewrite.codegen import Cutter, Edits, is_dead
from reptool.runtime.hooks import guarded_rank
from reptool.runtime.method import Method
from reptool.runtime.subclass import own_members
from reptool.surgery.site import Site, Surgery
from reptool.surgery.traced import Traced, is_plain_identity

_DIVISIONS = frozenset({"truediv", "true_divide", "div", "__truediv__"})
_FUNCTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


class Operating(Traced):
    """Works out every edit for the regions whose places are known."""

    def operate(self, sites: list[Site]) -> Surgery | dict[fx.Node, Refusal]:
        """All edits for these sites, or the value nodes of those that cannot be done and why."""
        edits = Edits(constants=self.trace.constants)
        surgery = Surgery(sites, constants=self.trace.constants)
        if self.fallbacks is not None:
            surgery.fallbacks = self.fallbacks(sites, self.aliases)
        alive = self.alive(sites)
        slots: set[str] = set()
        whole: set[Event] = set()
        blame: dict[fx.Node, Site] = {}
        for site in sites:
            self._edit(site, edits, surgery, alive, slots, whole, blame)
        self._spread(edits, blame)
        self._kill_inert(edits)
        problems: dict[fx.Node, Refusal] = {}
        self._rewrite(self.trace.top, edits, surgery, whole, blame, problems)
        if problems:
            return problems
        self._drop(sites, edits, surgery, slots)
        return surgery

    def _edit(
        self,
        site: Site,
        edits: Edits,
        surgery: Surgery,
        alive: set[fx.Node],
        slots: set[str],
        whole: set[Event],
        blame: dict[fx.Node, Site],
    ) -> None:
        way = set(site.onpath)
        for node in (*site.onpath, *site.dead, site.carrier):
            blame.setdefault(node, site)
        if site.slot is not None:
            slots.add(site.slot)
        if site.event is not None:
            whole.add(site.event)
        for node in site.region.form.ops:
            behind = self.found.own.get(node)
            if behind is not None:
                self._bare(behind, edits, surgery)
                blame.setdefault(behind.norm, site)
        for node in site.onpath:
            op = self.found.ops[node]
            if isinstance(op, View) or (isinstance(op, Pieces) and node in alive):
                continue
            read = [op.source, *op.sources] if isinstance(op, Affine) else op.sources
            source = next(s for s in read if s in way or s is site.carrier or s is site.region.root)
            if isinstance(op, (Sum, Concat, Stack)):
                source = self._operand(node, op, site, way)
            edits.bypass[node] = source
            if source.op == "placeholder" and _makes_floats(node):
                edits.promoted.add(node)
            if node.op == "call_module" and op.owners:
                surgery.identities[str(node.target)] = "absorbed"
        for node in site.dead:
            if node not in alive:
                edits.dead.add(node)
                if node.op == "call_module" and self.found.ops[node].owners:
                    surgery.identities[str(node.target)] = "absorbed"
        op = self.found.ops[site.carrier]
        rank = self._rank_held(site)
        if rank is not None and (path := site.slot if site.slot is not None else self._takes(site)) is not None:
            surgery.guards[path] = rank
        if site.slot is None and not site.in_place:
            edits.bypass[site.carrier] = op.sources[0]
            edits.layers[site.carrier] = self._call_of(site)

    def _bare(self, behind: Behind, edits: Edits, surgery: Surgery) -> None:
        """A norm whose scale and shift went into all that reads it."""
        edits.bypass |= {node: at for at, node in behind.nodes.items()}
        if not behind.bare.module:
            edits.bare[behind.norm] = behind.bare
            return
        path = str(behind.norm.target)
        surgery.bare.add(path)
        surgery.dropped |= {f"{path}.{n}" for n, _ in self.modules[path].named_parameters()}

    def _rank_held(self, site: Site) -> int | None:
        """The rank of its input for which alone a region is right."""
        for node in site.region.form.ops:
            op = self.found.ops[node]
            earlier = guarded_rank(node.meta["module"]) if node.op == "call_module" else None
            held = self.found.ranks.get(node) or (op.rank_guard if isinstance(op, Affine) else None) or earlier
            if held is not None:
                return self.found.facts.rank(site.region.root) or held
        return None

    @staticmethod
    def _takes(site: Site) -> str | None:
        """The module whose call gives its first argument to a functional layer's region."""
        event: Event | None = site.carrier.meta["event"]
        while event is not None and not (event.method == "forward" and site.region.root in event.args[:1]):
            event = event.parent
        return None if event is None else event.path

    def _spread(self, edits: Edits, blame: dict[fx.Node, Site]) -> None:
        """Norms that are no modules and were given to the parts in front of them are left out of the code."""
        for spread in self.found.spreads:
            site = next((blame[n] for n in spread.shares if n in blame), None)
            if site is not None and spread.norm.op != "call_module":
                edits.bypass[spread.norm] = spread.source
                blame.setdefault(spread.norm, site)

    def _owners(self, node: fx.Node) -> tuple[str, ...]:
        op = self.found.ops.get(node)
        spread = next((s for s in self.found.spreads if s.norm is node), None)
        return spread.op.owners if spread is not None else () if op is None else op.owners

    def _operand(self, node: fx.Node, op: Op, site: Site, way: set[fx.Node]) -> fx.Node:
        position = self.reads.position
        on = [s for s in op.sources if s in way or s is site.carrier]
        if position[node] > position[site.carrier] or node is site.region.value:
            behind = [s for s in on if s is site.carrier or self._leads(s, site.carrier)]
            return behind[0] if behind else on[0]
        return on[0] if on else site.region.root

    def _leads(self, node: fx.Node, target: fx.Node) -> bool:
        form = next(iter(self.found.forms.get(node, {}).values()), None)
        return any(target in f.ops for f in self.found.forms.get(node, {}).values()) if form else False

    def _call_of(self, site: Site) -> tuple[Any, tuple[str, str | None], dict[str, Any]]:
        shape, n = site.shape, len(site.shape.kernel_size)
        names = site.names
        cast = {"cast": 1 + site.region.form.shape.biased} if self.found.facts.follows(site.carrier) else {}
        if shape.kind == "linear":
            return nn.functional.linear, names, cast
        if shape.kind == "deformable":
            return site.carrier.target, names, {"beside": {"weight": WEIGHT, "bias": BIAS}}
        if shape.kind == "transposed":
            return _TRANSPOSED[n], names, {
                **cast,
                "stride": shape.stride, "padding": shape.padding, "output_padding": shape.output_padding,
                "groups": shape.groups, "dilation": shape.dilation,
            }  # fmt: skip
        padding: Any = shape.padding
        outer = None if shape.outer is None else [p for pair in reversed(shape.outer) for p in pair]
        mode = shape.outer_mode
        if shape.padding_mode != "zeros":
            outer = [p for q in reversed(shape.padding) for p in (q, q)]  # type: ignore[misc]
            padding, mode = (0,) * n, shape.padding_mode
        return _FUNCTIONS[n], names, {
            **cast,
            "stride": shape.stride, "padding": padding, "dilation": shape.dilation, "groups": shape.groups,
            **({} if outer is None else {"outer": outer, "outer_mode": mode}),
        }  # fmt: skip

    def _kill_inert(self, edits: Edits) -> None:
        """Assertions and shape arithmetic that depend on dead values are dead too."""
        for node in self.trace.graph.nodes:
            if node.meta["const"] or node in edits.dead:
                continue
            if any(n in edits.dead for n in node.all_input_nodes) and is_inert(node):
                edits.dead.add(node)

    def _rewrite(
        self,
        event: Event,
        edits: Edits,
        surgery: Surgery,
        whole: set[Event],
        blame: dict[fx.Node, Site],
        problems: dict[fx.Node, Refusal],
    ) -> None:
        if event in whole:
            return
        if event.parent is not None and is_dead(event, edits) and event.method == "forward" and not _all_const(event):
            if any(n in blame for n in event.nodes()):  # what holds no part of a region stays for other code
                surgery.identities.setdefault(event.path, "no longer needed")
            return
        if self._is_bypass(event, edits, surgery):
            surgery.identities.setdefault(event.path, "absorbed")
            return
        touched: list[fx.Node] = []
        for item in event.items:
            if isinstance(item, Event):
                if is_dead(item, edits):
                    touched += [n for n in item.nodes() if n in edits.dead][:1]
                self._rewrite(item, edits, surgery, whole, blame, problems)
            elif (
                item in edits.dead
                or item in edits.layers
                or item in edits.bare
                or (
                    item in edits.bypass
                    and item.op != "call_module"
                    and not is_plain_identity(self.found.ops.get(item), item)
                )
            ):
                touched.append(item)
        if touched:
            self._regenerate(event, edits, surgery, blame, problems, touched)

    def _is_bypass(self, event: Event, edits: Edits, surgery: Surgery) -> bool:
        """Whether a module call does nothing any more but hand its input on."""
        if event.parent is None or event.method != "forward" or event.hooked or event.questions or event.effects:
            return False
        if not isinstance(event.output, fx.Node) or len(event.args) != 1 or event.kwargs or event.args[0] is None:
            return False
        nodes = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
        if not nodes or not all(n in edits.bypass and n not in edits.layers for n in nodes):
            return False
        if not edits.promoted.isdisjoint(nodes):
            return False
        return any(self._owners(n) for n in nodes) and any(n.op != "call_module" for n in nodes)

    def _regenerate(
        self,
        event: Event,
        edits: Edits,
        surgery: Surgery,
        blame: dict[fx.Node, Site],
        problems: dict[fx.Node, Refusal],
        touched: list[fx.Node],
    ) -> None:
        refusal = self._method_refused(event)
        specializes = surgery.fallbacks is not None
        cutter = Cutter(
            event, edits, self.reads, self.found.facts.recorder, self._assumed(event), specializes, self.trace.prefix
        )
        mine = dict.fromkeys([*(blame[n] for n in touched if n in blame), *self._held_by(event, surgery)])
        cutter.fused = tuple(s.slot for s in mine if s.slot is not None)
        made = refusal or cutter.method()
        known = surgery.methods.get(event.path, {}).get(event.method)
        if isinstance(made, Method) and known is not None and known.source != made.source:
            made = Refusal(Code.SHARED, f"{event.function} runs differently in different places", (event.place,))
        if isinstance(made, Refusal):
            for node in touched:
                site = blame.get(node) or next((blame[n] for n in self._cause(node) if n in blame), None)
                if site is not None:
                    problems[site.region.value] = made
            if not problems:
                raise AssertionError(f"nobody to blame for {made}")
            return
        if surgery.fallbacks is not None:
            surgery.fallbacks.rewritten.add(event)
            if cutter.specialized:
                sites = dict.fromkeys(blame[n] for n in touched if n in blame)
                surgery.fallbacks.need(event, (), sites, cutter.settings)
        surgery.methods.setdefault(event.path, {})[event.method] = made
        surgery.events.setdefault(event.path, event)

    @staticmethod
    def _held_by(event: Event, surgery: Surgery) -> Iterable[Site]:
        """The regions that lie in one call, and in no call inside of it."""
        own = {i for i in event.items if not isinstance(i, Event)}
        return (s for s in surgery.sites if s.carrier in own or s.region.form.ops & own)

    def _assumed(self, event: Event) -> bool:
        """Whether nobody showed with which optional arguments this call is made."""
        return not self.trace.shown and (event.parent is None or bool(self.trace.prefix))

    def _cause(self, node: fx.Node) -> Iterable[fx.Node]:
        stack, seen = [node], {node}
        while stack:
            n = stack.pop()
            yield n
            for i in n.all_input_nodes:
                if i not in seen:
                    seen.add(i)
                    stack.append(i)

    def _method_refused(self, event: Event) -> Refusal | None:
        full = ".".join(p for p in (self.trace.prefix, event.path) if p)
        if (full, event.method) in self.fixed:
            return self.fixed[full, event.method]
        if isinstance(event.module, (nn.Sequential, nn.ModuleList)) and event.path:
            function = type(event.module).forward
            if function is nn.Sequential.forward:
                return None
        bound = event.module.__dict__.get(event.method)
        if bound is not None and not hasattr(bound, "recorder"):
            return Refusal(Code.METHOD, f"{event.function} was put on the instance", (event.place,))
        return None

    def _drop(self, sites: list[Site], edits: Edits, surgery: Surgery, slots: set[str]) -> None:
        """Parameters and buffers that nothing reads any more, and norms that are none any more."""
        kept = {f"{s.owner}.{n}" if s.owner else n for s in sites if s.slot is None for n in s.names if n}
        kept |= self._given_out(surgery)
        for site in sites:
            for node in site.region.form.ops:
                op = self.found.ops[node]
                behind = self.found.own.get(node)
                if node.op == "call_module" or (behind is not None and behind.bare.module):
                    continue
                for owner in op.owners:
                    if owner in self.trace.constants or owner in kept:
                        continue
                    if any(owner == s or owner.startswith(s + ".") for s in slots):
                        continue
                    if not self._is_read(owner, edits):
                        surgery.dropped.add(owner)
        for path in filter(None, surgery.methods):
            if self._is_no_layer(path, edits, surgery, kept):
                surgery.plain.add(path)
                surgery.dropped |= {f"{path}.{n}" for n, _ in self.modules[path].named_buffers(recurse=False)}

    def _is_read(self, tensor: str, edits: Edits) -> bool:
        """Whether an operation that still runs reads a parameter or buffer."""
        users = (u for a in self._attributes_of(tensor) for u in self.const_users(a, sizes=True))
        return any(u not in edits.dead and u not in edits.bypass and u not in edits.bare for u in users)

    def _is_no_layer(self, path: str, edits: Edits, surgery: Surgery, kept: set[str]) -> bool:
        """Whether a layer whose method was written anew reads none of its tensors, and calls only methods that move."""
        module = self.modules[path]
        own = {f"{path}.{n}" for n, _ in module.named_parameters(recurse=False)}
        if not isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.conv._ConvNd, nn.Linear)):
            return False
        if own & kept or not own <= surgery.dropped:
            return False
        if any(self._is_read(f"{path}.{n}", edits) for n, _ in module.named_buffers(recurse=False)):
            return False
        called = {i.method for i in surgery.events[path].items if isinstance(i, Event) and i.module is module}
        return called <= own_members(type(module)).keys()

    def _given_out(self, surgery: Surgery) -> set[str]:
        """Parameters and buffers that methods written anew give to their callers, whatever becomes of them there."""
        return {
            str(node.target)
            for node, events in self.givers.items()
            if any(e.method in surgery.methods.get(e.path, ()) for e in events)
        }


def _makes_floats(node: fx.Node) -> bool:
    """Whether arithmetic gives floating-point numbers for integers too: a division, or a constant that is a float."""
    if node.op == "call_module":
        return False
    if name_of(node) in _DIVISIONS:
        return True
    constants = [n.meta.get("tensor") for n in node.all_input_nodes if n.meta["const"]]
    floats = any(isinstance(t, Tensor) and t.is_floating_point() for t in constants)
    return floats or any(isinstance(a, float) for a in (*node.args, *node.kwargs.values()))


def _all_const(event: Event) -> bool:
    return all(n.meta["const"] for n in event.nodes())
