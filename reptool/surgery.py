"""Surgery: where each region's layer goes and what becomes of the operations it absorbs.

By preference the fused layer takes the slot of a layer of its own type and the absorbed modules become `nn.Identity`:
no code changes. Sums, concatenations and functional operations are left out of the one method they occur in, which is
written anew (`regenerate`). Everything is worked out here before anything is written; `apply` then only assigns.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool._nodes import is_inert, metadata_read, name_of
from reptool.forms import Form
from reptool.lower import Geometry, Place, geometry, geometry_of
from reptool.ops import Affine, Concat, Op, Sum, View
from reptool.plan import Analysis, Region
from reptool.refusal import Code, Refusal
from reptool.regenerate import Cutter, Edits, Method, is_dead
from reptool.straight import straight
from reptool.trace import Event, Trace
from reptool.walk import nodes_in

_FUNCTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSED = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


@dataclass(eq=False)
class Site:
    """One region with the place its layer goes to.

    Args:
        region: what is computed.
        carrier: the layer node whose place is taken.
        slot: module path that gets the layer; None for a functional layer in a regenerated method.
        shape: the layer's geometry.
        reuse: whether the layer object in the slot stays and only its values change.
        onpath: absorbed operations between the root and the value on the carrier's way.
        dead: absorbed operations off that way.
        names: for a functional layer, the attribute names of weight and bias on `owner`.
        owner: module path that holds a functional layer's weight.
        place: dtype, device and memory format of the layer.
        cast: the layer's weight and bias, once they are worked out.
    """

    region: Region
    carrier: fx.Node
    slot: str | None
    shape: Geometry
    reuse: bool
    onpath: list[fx.Node]
    dead: list[fx.Node]
    event: Event | None = None
    names: tuple[str, str | None] = ("weight", None)
    owner: str = ""
    place: Place | None = None
    cast: tuple[Tensor, Tensor | None] | None = None


@dataclass
class Surgery:
    """Everything that will be done to one traced module."""

    sites: list[Site] = field(default_factory=list)
    identities: dict[str, str] = field(default_factory=dict)  # path -> why
    methods: dict[str, dict[str, Method]] = field(default_factory=dict)  # path -> method name -> source
    events: dict[str, Event] = field(default_factory=dict)  # path -> a call of its regenerated method
    plain: set[str] = field(default_factory=set)  # paths whose class becomes a plain module
    dropped: set[str] = field(default_factory=set)  # parameter and buffer paths that go away
    guards: dict[str, int] = field(default_factory=dict)  # path -> rank its input must have
    constants: dict[str, Tensor] = field(default_factory=dict)


class Surgeon:
    """Finds the places, checks ownership and writes the methods of one trace."""

    def __init__(
        self, trace: Trace, found: Analysis, hooked: set[str], tied: dict[str, set[str]], held: set[str]
    ) -> None:
        self.trace, self.found, self.hooked, self.tied, self.held = trace, found, hooked, tied, held
        self.reads = found.reads
        self.calls: dict[str, list[fx.Node | Event]] = {}
        self._collect(trace.top)
        self.modules = dict(trace.root.named_modules())
        self.aliases: dict[str, list[str]] = {}
        first: dict[int, str] = {}
        for name, module in trace.root.named_modules(remove_duplicate=False):
            self.aliases.setdefault(first.setdefault(id(module), name), []).append(name)

    def _collect(self, event: Event) -> None:
        self.calls.setdefault(event.path, []).append(event)
        for item in event.items:
            if isinstance(item, Event):
                self._collect(item)
            elif item.op == "call_module":
                self.calls.setdefault(str(item.target), []).append(item)

    # --- one region
    def site(self, region: Region) -> Site | Refusal:
        """The best place for a region's layer, or why there is none."""
        ops = region.form.ops
        shape = geometry(region.form.shape)
        if isinstance(shape, Refusal):
            return shape.at(region.value.name)
        problem = self._owners_refused(ops)
        if problem is not None:
            return problem
        best: tuple[int, Site] | None = None
        position = self.reads.position
        last: Refusal | None = None
        for carrier in sorted(self._carriers(ops), key=position.__getitem__):
            found = self._at(region, carrier, shape)
            if isinstance(found, Refusal):
                last = last or found
                continue
            rank = self._rank(found)
            if best is None or rank < best[0]:
                best = (rank, found)
        if best is None:
            return last or Refusal(
                Code.METHOD, "no layer in this region has a place for the fused one", (region.value.name,)
            )
        site = best[1]
        taint = self._taint(site)
        return taint if taint is not None else site

    def _carriers(self, ops: Iterable[fx.Node]) -> list[fx.Node]:
        """The region's layers; where there are none (a norm or a pooling by itself) its modules."""
        layers = [n for n in ops if _is_layer(self.found.ops[n])]
        return layers or [n for n in ops if n.op == "call_module" and self.found.ops[n].owners]

    @staticmethod
    def _rank(site: Site) -> int:
        return (0 if site.reuse else 2) + (0 if site.slot is not None else 4) + (1 if site.event is not None else 0)

    def _owners_refused(self, ops: Iterable[fx.Node]) -> Refusal | None:
        for node in ops:
            op = self.found.ops[node]
            for owner in op.owners:
                others = self.tied.get(owner)
                if others:
                    return Refusal(
                        Code.SHARED, f"the parameter {owner!r} is shared with {sorted(others)}", (node.name,)
                    )
        return None

    def _at(self, region: Region, carrier: fx.Node, shape: Geometry) -> Site | Refusal:
        way = self._way(region, carrier)
        dead = [n for n in region.form.ops if n not in way and n is not carrier]
        position = self.reads.position
        if any(isinstance(self.found.ops[n], View) and position[n] < position[carrier] for n in way):
            return Refusal(Code.LAYOUT, "the axes are rearranged in front of this layer", (carrier.name,))
        site = Site(region, carrier, None, shape, False, way, dead)
        written = self._written(region, way, carrier)
        if written is not None:
            return written
        if carrier.op == "call_module":
            path = str(carrier.target)
            module = carrier.meta["module"]
            reuse = geometry_of(module) == shape and _plain_forward(module)
            if not path and not reuse:
                return Refusal(Code.METHOD, "the model itself is this layer", (carrier.name,))
            return replace(site, slot=path, reuse=reuse, place=Place.of(self._weight_near(path)))
        event = self._whole_event(site)
        if event is not None and shape.kind != "transposed" and _weight_of(carrier, self.found) is not None:
            weight = _weight_of(carrier, self.found)
            assert weight is not None
            return replace(site, slot=event.path, event=event, place=Place.of(weight))
        return self._functional(site)

    def _weight_near(self, path: str) -> Tensor:
        """A tensor of the dtype and device that a layer at `path` is to have: its own, or the nearest around it."""
        while True:
            module = self.modules[path]
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.is_floating_point():
                    return tensor
            if not path:
                return torch.zeros(())
            path = path.rpartition(".")[0]

    def _functional(self, site: Site) -> Site | Refusal:
        """A functional layer keeps its call; weight and bias become plain parameters of the module they came from."""
        carrier = site.carrier
        event: Event = carrier.meta["event"]
        weight = _weight_of(carrier, self.found)
        if weight is None:
            return Refusal(Code.METHOD, "the layer's weight is not held by a module", (carrier.name,))
        owned = [str(n.target) for n in _attributes(carrier) if str(n.target).rpartition(".")[0] == event.path]
        held = [p for p in owned if p not in self.trace.constants]
        if not held:
            return Refusal(
                Code.METHOD, "the layer's weight is held by another module than the one that uses it", (carrier.name,)
            )
        direct = _direct_names(carrier, event.path)
        name = (
            direct[0]
            or next((p.rpartition(".")[2] for p in held if _same_shape(self.trace, p, weight)), None)
            or "weight"
        )
        bias = direct[1] or ("bias" if name == "weight" else f"{name}_bias")
        return replace(site, names=(name, bias), owner=event.path, place=Place.of(weight))

    def _way(self, region: Region, carrier: fx.Node) -> list[fx.Node]:
        """Absorbed operations on the way root -> carrier -> value."""
        ops = region.form.ops
        above: dict[fx.Node, fx.Node] = {}
        queue = [region.value]
        while queue:
            node = queue.pop()
            if node is carrier:
                break
            for source in self.found.ops[node].sources:
                if source in ops and source not in above:
                    above[source] = node
                    queue.append(source)
        way, node = [], carrier
        while node is not region.value:
            node = above[node]
            way.append(node)
        node = carrier
        while True:
            node = next((s for s in self.found.ops[node].sources if s in ops), region.root)
            if node is region.root:
                return way
            way.append(node)

    def _written(self, region: Region, way: list[fx.Node], carrier: fx.Node) -> Refusal | None:
        position = self.reads.position
        readers = [position[n] for n in region.form.ops if region.root in self.found.ops[n].sources]
        first = min(readers, default=0)
        if self.reads.written_between(region.root, first, position[carrier]):
            return Refusal(
                Code.MUTATED, "the value read is written in place before the layer runs", (region.root.name,)
            )
        for node in region.form.ops:
            written = self.reads.mutates.get(node)
            if written is None:
                continue
            storage = self.reads.storage.get(written, written)
            if storage is self.reads.storage.get(region.root, region.root):
                return Refusal(
                    Code.MUTATED, "the value the region reads is written in place inside of it", (node.name,)
                )
            made = storage if storage in region.form.ops else None
            if made is None:
                return Refusal(
                    Code.MUTATED, "a value from outside the region is written in place inside of it", (node.name,)
                )
        return None

    def _whole_event(self, site: Site) -> Event | None:
        """The module call around a functional layer that does nothing beside this region."""
        ops = site.region.form.ops
        for event in site.carrier.meta["event"].ancestors():
            if event.method != "forward":
                continue
            if not event.path or event.parent is None or event.hooked:
                break
            output = event.output
            if (
                not isinstance(output, fx.Node)
                or output not in ops
                or not (output in site.onpath or output is site.carrier)
            ):
                break
            inputs = list(_event_inputs(event))
            if len(event.args) != 1 or event.kwargs or len(inputs) != 1:
                break
            entry = inputs[0]
            if entry is not site.region.root and entry not in site.onpath:
                break
            inner = [n for n in event.nodes() if not n.meta["const"] and not is_inert(n)]
            return None if any(n not in ops for n in inner) or event.questions or event.effects else event
        return None

    # --- ownership over all regions
    def check(self, sites: list[Site]) -> dict[Region, Refusal]:
        """Regions whose modules are used in a way the surgery would change."""
        bad: dict[Region, Refusal] = {}
        absorbed: dict[fx.Node, list[Site]] = {}
        for site in sites:
            for node in (*site.onpath, *site.dead, site.carrier):
                absorbed.setdefault(node, []).append(site)
        live = self._live(sites)
        for site in sites:
            refusal = self._check_site(site, absorbed, live)
            if refusal is not None:
                bad[site.region] = refusal
        return bad

    def _live(self, sites: list[Site]) -> set[fx.Node]:
        """Operations still computed as they stand."""
        fused = {s.region.value: s for s in sites}
        live: set[fx.Node] = set()
        stack = list(self.found.wanted)
        while stack:
            node = stack.pop()
            if node in live:
                continue
            if node in fused:
                stack.append(fused[node].region.root)
                continue
            live.add(node)
            op = self.found.ops.get(node)
            if op is not None:
                stack += op.sources
        return live

    def _check_site(self, site: Site, absorbed: dict[fx.Node, list[Site]], live: set[fx.Node]) -> Refusal | None:
        signature = self._signature(site)
        for node in (*site.onpath, *site.dead, site.carrier):
            op = self.found.ops[node]
            changes = bool(op.owners) or node is site.carrier
            if changes and node in live:
                return Refusal(Code.READ_ELSEWHERE, "an absorbed layer's output is still read elsewhere", (node.name,))
            if not op.owners and node in live and node not in site.onpath:
                continue
            if node in live and node in site.onpath and not is_plain_identity(op, node):
                return Refusal(Code.READ_ELSEWHERE, "an absorbed value is still read elsewhere", (node.name,))
            last = max(absorbed[node], key=lambda s: self.reads.position[s.region.value])
            if len(absorbed[node]) > 1 and last is site and any(other.carrier is node for other in absorbed[node]):
                return Refusal(Code.READ_ELSEWHERE, "one layer would have to serve two regions", (node.name,))
            soft = self._soft_refused(node, site)
            if soft is not None:
                return soft
            for owner in op.owners:
                if node.op != "call_module" and node is not site.carrier and site.event is None:
                    continue  # a constant that is read here and elsewhere simply stays
                refusal = self._owner_refused(owner, node, site, signature, absorbed)
                if refusal is not None:
                    return refusal
        return None

    def _soft_refused(self, node: fx.Node, site: Site) -> Refusal | None:
        for reader in self.found.soft.get(node, ()):
            if metadata_read(reader) == "rank" and node not in site.dead:
                continue
            if node in site.dead or not self._same_size(node, site):
                return Refusal(Code.READ_ELSEWHERE, "the shape of an absorbed value is read", (node.name, reader.name))
        return None

    def _same_size(self, node: fx.Node, site: Site) -> bool:
        """Whether an absorbed value on the way has the size of what stands in for it."""
        position = self.reads.position
        if node is site.carrier or position[node] > position[site.carrier]:
            between = [n for n in site.onpath if position[n] > position[node]]
        else:
            between = [n for n in site.onpath if position[n] <= position[node]]
        for n in between:
            op = self.found.ops[n]
            if isinstance(op, Concat):
                return False
            if isinstance(op, Affine):
                keeps = (
                    all(a.stride == 1 and a.extent == 0 for a in op.shape.axes or ()) and op.shape.transposed is None
                )
                if not keeps or op.shape.in_channels != op.shape.out_channels:
                    return False
        return True

    def _owner_refused(
        self, owner: str, node: fx.Node, site: Site, signature: object, absorbed: dict[fx.Node, list[Site]]
    ) -> Refusal | None:
        """Whether a module or tensor is used anywhere but in absorbed operations of the same meaning."""
        slotted = owner == site.slot or (site.event is not None and owner.startswith(f"{site.slot}."))
        if owner in self.hooked:
            return Refusal(Code.HOOK, f"{owner!r} has hooks that would see other values", (node.name,))
        if owner in self.held and node.op == "call_module" and not (slotted and site.reuse):
            return Refusal(
                Code.SHARED, f"{owner!r} is also kept in a plain attribute, which would keep the old one", (node.name,)
            )
        users: list[fx.Node] = []
        for call in self.calls.get(owner, ()):
            if isinstance(call, fx.Node):
                users += self._const_users(call) if call.meta["const"] else [call]
        for attribute in self._attributes_of(owner):
            users += self._const_users(attribute)
        for user in users:
            if user in absorbed:
                kept = slotted or node is site.carrier
                if any(
                    (user is s.carrier) != (node is site.carrier) for s in absorbed[user] if user.op == "call_module"
                ):
                    return Refusal(
                        Code.SHARED,
                        f"{owner!r} would be a layer in one place and absorbed in another",
                        (node.name, user.name),
                    )
                if kept and any(self._signature(s) != signature for s in absorbed[user] if s is not site):
                    return Refusal(
                        Code.SHARED,
                        f"{owner!r} is called in places that would need different weights",
                        (node.name, user.name),
                    )
                continue
            if user.op == "call_module" and user is not node:
                return Refusal(Code.SHARED, f"{owner!r} is called more than once", (node.name, user.name))
            if user is not node:
                return Refusal(Code.SHARED, f"{owner!r} is also read by {user.name}", (node.name, user.name))
        return None

    def _attributes_of(self, owner: str) -> list[fx.Node]:
        if not hasattr(self, "_getattrs"):
            self._getattrs: dict[str, list[fx.Node]] = {}
            for n in self.trace.graph.nodes:
                if n.op == "get_attr":
                    path = str(n.target)
                    self._getattrs.setdefault(path, []).append(n)
                    self._getattrs.setdefault(path.rpartition(".")[0], []).append(n)
        return self._getattrs.get(owner, [])

    def _const_users(self, node: fx.Node) -> list[fx.Node]:
        """Operations on data that a constant ends up in."""
        out: list[fx.Node] = []
        stack, seen = [node], {node}
        while stack:
            n = stack.pop()
            for user in n.users:
                if user in seen or metadata_read(user):
                    continue
                seen.add(user)
                if user.meta["const"]:
                    stack.append(user)
                else:
                    out.append(user)
        return out

    def _signature(self, site: Site) -> object:
        return site.slot, site.shape, self.pattern(self.ordered(site.region.form))

    def ordered(self, form: Form) -> list[fx.Node]:
        """The operations of a form in the order in which they run."""
        return sorted(form.ops, key=self.reads.position.__getitem__)

    def pattern(self, ops: list[fx.Node]) -> object:
        """What operations do and whose values they use, whatever the nodes are called."""
        return tuple((self.found.ops[n].owners, name_of(n), self.found.ops[n].paradigm) for n in ops)

    def _taint(self, site: Site) -> Refusal | None:
        """Whether the code around the region asked something that another input might answer otherwise."""
        chains = [list(n.meta["event"].ancestors()) for n in (*site.onpath, *site.dead, site.carrier)]
        common = set(chains[0])
        for chain in chains[1:]:
            common &= set(chain)
        lowest = next((e for e in chains[0] if e in common), None)
        seen: list[Event] = []
        for chain, node in zip(chains, (*site.onpath, *site.dead, site.carrier), strict=True):
            for event in (*chain, *node.meta.get("through", ())):
                if event not in seen and (event in common) <= (event is lowest):
                    seen.append(event)
                if event is lowest:
                    break
        for event in seen:
            if lowest is not None and event is lowest and event.questions and self._in_line(site, event):
                continue
            for question in event.questions:
                return Refusal(
                    Code.SPECIALIZED,
                    f"{event.path or '<root>'}.{event.method} asks for the {question.what} of {question.node}; "
                    "with another answer it may run other code",
                    (site.region.value.name,),
                )
        return None

    def _in_line(self, site: Site, event: Event) -> bool:
        """Whether the text of the method around a chain of layers shows that they always run one after the other."""
        items: list[fx.Node | Event] = []
        for node in sorted((*site.onpath, site.carrier), key=self.reads.position.__getitem__):
            item: fx.Node | Event = node
            around: Event | None = node.meta["event"]
            while around is not event:
                if around is None:
                    return False
                item, around = around, around.parent
            if item not in items:
                items.append(item)
        wheres = [i.where if isinstance(i, Event) else i.meta.get("where") for i in items]
        function = inspect.getattr_static(type(event.module), event.method, None)
        known = [w for w in wheres if w is not None]
        return not site.dead and len(known) == len(wheres) and function is not None and straight(function, known)

    # --- the whole operation
    def operate(self, sites: list[Site]) -> Surgery | dict[fx.Node, Refusal]:
        """All edits for these sites, or the value nodes of those that cannot be done and why."""
        edits = Edits(constants=self.trace.constants)
        surgery = Surgery(sites, constants=self.trace.constants)
        alive = self._live(sites)
        slots: set[str] = set()
        whole: set[Event] = set()
        blame: dict[fx.Node, Site] = {}
        for site in sites:
            self._edit(site, edits, surgery, alive, slots, whole, blame)
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
        for node in site.onpath:
            op = self.found.ops[node]
            if isinstance(op, View):
                continue
            source = next(s for s in op.sources if s in way or s is site.carrier or s is site.region.root)
            if isinstance(op, (Sum, Concat)):
                source = self._operand(node, op, site, way)
            edits.bypass[node] = source
            if node.op == "call_module" and op.owners:
                surgery.identities[str(node.target)] = "absorbed"
        for node in site.dead:
            if node not in alive:
                edits.dead.add(node)
                if node.op == "call_module" and self.found.ops[node].owners:
                    surgery.identities[str(node.target)] = "absorbed"
        op = self.found.ops[site.carrier]
        for node in site.region.form.ops:
            guarded = self.found.ops[node]
            if isinstance(guarded, Affine) and guarded.rank_guard is not None and site.slot is not None:
                surgery.guards[site.slot] = guarded.rank_guard
        if site.slot is None:
            edits.bypass[site.carrier] = op.sources[0]
            edits.layers[site.carrier] = self._call_of(site)

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
        if shape.kind == "linear":
            return nn.functional.linear, names, {}
        if shape.kind == "transposed":
            return _TRANSPOSED[n], names, {
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
            "stride": shape.stride, "padding": padding, "dilation": shape.dilation, "groups": shape.groups,
            **({} if outer is None else {"outer": outer, "outer_mode": mode}),
        }  # fmt: skip

    def _kill_inert(self, edits: Edits) -> None:
        """Assertions and shape arithmetic that hang on dead values are dead too."""
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
                or (
                    item in edits.bypass
                    and item.op != "call_module"
                    and not is_plain_identity(self.found.ops[item], item)
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
        return any(self.found.ops[n].owners for n in nodes) and any(n.op != "call_module" for n in nodes)

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
        made = refusal or Cutter(event, edits, self.reads, self._assumed(event)).method()
        known = surgery.methods.get(event.path, {}).get(event.method)
        if isinstance(made, Method) and known is not None and known.source != made.source:
            made = Refusal(
                Code.SHARED, f"{event.path}.{event.method} runs differently in different places", (event.path,)
            )
        if isinstance(made, Refusal):
            for node in touched:
                site = blame.get(node) or next((blame[n] for n in self._cause(node) if n in blame), None)
                if site is not None:
                    problems[site.region.value] = made
            if not problems:
                raise AssertionError(f"nobody to blame for {made}")
            return
        surgery.methods.setdefault(event.path, {})[event.method] = made
        surgery.events.setdefault(event.path, event)

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
        if isinstance(event.module, (nn.Sequential, nn.ModuleList)) and event.path:
            function = type(event.module).forward
            if function is nn.Sequential.forward:
                return None
        bound = event.module.__dict__.get(event.method)
        if bound is not None and not hasattr(bound, "recorder"):
            return Refusal(Code.METHOD, f"{event.path}.{event.method} was put on the instance", (event.path,))
        return None

    def _drop(self, sites: list[Site], edits: Edits, surgery: Surgery, slots: set[str]) -> None:
        """Parameters and buffers that nothing reads any more, and norms that are none any more."""
        kept = {f"{s.owner}.{n}" if s.owner else n for s in sites if s.slot is None for n in s.names if n}
        for site in sites:
            for node in site.region.form.ops:
                op = self.found.ops[node]
                if node.op == "call_module":
                    continue
                for owner in op.owners:
                    if owner in self.trace.constants or owner in kept:
                        continue
                    if any(owner == s or owner.startswith(s + ".") for s in slots):
                        continue
                    if any(
                        u not in edits.dead and u not in edits.bypass
                        for a in self._attributes_of(owner)
                        for u in self._const_users(a)
                    ):
                        continue
                    surgery.dropped.add(owner)
        for path in surgery.methods:
            module = self.modules[path]
            own = {f"{path}.{n}" if path else n for n, _ in module.named_parameters(recurse=False)}
            layer = isinstance(module, (nn.modules.batchnorm._NormBase, nn.modules.conv._ConvNd, nn.Linear))
            if layer and own <= surgery.dropped | kept and not own & kept and path:
                surgery.plain.add(path)
                surgery.dropped |= {f"{path}.{n}" for n, _ in module.named_buffers(recurse=False)}


# --- small questions ------------------------------------------------------------------------------------------------
def _is_layer(op: Op) -> bool:
    return isinstance(op, Affine) and op.layer


def is_plain_identity(op: Op, node: fx.Node) -> bool:
    """An operation that hands its input on as it is: it may stay where it stands."""
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.owners


def _all_const(event: Event) -> bool:
    return all(n.meta["const"] for n in event.nodes())


def _event_inputs(event: Event) -> list[fx.Node]:
    return list(nodes_in(event.args)) + list(nodes_in(event.kwargs))


def _plain_forward(module: nn.Module) -> bool:
    """Whether a layer computes with its `weight` and `bias` as torch.nn does."""
    return type(module).forward in {
        nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward,
        nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward,
    }  # fmt: skip


def _weight_argument(node: fx.Node) -> fx.Node | None:
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return weight if isinstance(weight, fx.Node) else None


def _weight_of(node: fx.Node, found: Analysis) -> Tensor | None:
    argument = _weight_argument(node)
    value = None if argument is None else found.facts.constant(argument)
    return value if isinstance(value, Tensor) else None


def _attributes(node: fx.Node) -> list[fx.Node]:
    out, stack, seen = [], [n for n in node.all_input_nodes if n.meta["const"]], set()
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op == "get_attr":
            out.append(n)
        stack += n.all_input_nodes
    return out


def _direct_names(node: fx.Node, path: str) -> tuple[str | None, str | None]:
    """Attribute names of weight and bias when the layer reads them as they are."""
    found: list[str | None] = []
    for position, key in ((1, "weight"), (2, "bias")):
        value = node.args[position] if len(node.args) > position else node.kwargs.get(key)
        direct = isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target).rpartition(".")[0] == path
        found.append(str(value.target).rpartition(".")[2] if direct and isinstance(value, fx.Node) else None)
    return found[0], found[1]


def _same_shape(trace: Trace, path: str, weight: Tensor) -> bool:
    owner, _, name = path.rpartition(".")
    held = getattr(trace.root.get_submodule(owner), name, None)
    return isinstance(held, Tensor) and held.shape == weight.shape
