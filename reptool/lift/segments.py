"""Segments: operations on parts of a value that are no map one by one, and a map of the value together.

::

    x.reshape(*x.shape[:-1], r, k)  ->  einsum("...rk,rkc->...rc", ., R)  ->  reshape(x.shape)  =  x @ block_diag(R)

A segment begins at an operation that mixes what a view has split (a product with a constant, a sum, a function that is
not followed) and grows until the value has the axes again that it began with. All of its operations have to be known to
be affine at every size (`probing.affine_ops`); what they are together is measured (`probing.impulse`), as of a module
whose code is not read.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, fx, nn

from reptool.algebra.kernel import Kernel
from reptool.algebra.work import Work
from reptool.capture.graph_builder import Writing
from reptool.fusions.linear import pointwise_to_linear
from reptool.ir.aliasing import Reads
from reptool.ir.decisions import decided
from reptool.ir.kinds.casts import cast_target
from reptool.ir.nodes import drops, is_inert, metadata_read, name_of
from reptool.ir.ops import Affine, Inner, Op
from reptool.lift.registry import FUNCTIONS, key_of
from reptool.probing.affine_ops import all_affine
from reptool.probing.impulse import Response, measure

MAX_NODES, MAX_AXES = 40, 3
_VIEWS = frozenset({
    "view", "reshape", "unflatten", "flatten", "permute", "transpose", "movedim", "unsqueeze", "squeeze", "getitem",
    "chunk", "split", "unbind", "contiguous", "clone", "detach", "expand", "repeat", "cat", "stack",
})  # fmt: skip
_MIXES = frozenset({"einsum", "matmul", "bmm", "mm", "sum", "mean"})
_OTHERS = frozenset({"mul", "truediv", "div", "add", "sub", "neg", "pad", "roll", "flip", "real"})


class Known(Protocol):
    """What is known of the values of a trace."""

    recorder: Writing

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape of a value on the example inputs."""

    def behind(self, node: fx.Node) -> int | None:
        """Axes behind the channels of the layer that makes a value."""

    def exact(self, node: fx.Node) -> Any:
        """A constant in float64."""

    def cone(self, node: fx.Node) -> tuple[str, ...]:
        """What a constant is made of."""


def segments(graph: fx.Graph, facts: Known, reads: Reads, values: bool) -> dict[fx.Node, Op]:
    """What the nodes of all segments are to the planner: the last one of each a map, the others nothing by themselves.

    Args:
        graph: the captured graph.
        facts: its facts.
        reads: its resolved reads.
        values: whether values may be looked at.
    """
    found: dict[fx.Node, Op] = {}
    if not facts.recorder.knows_inputs:
        return found
    finder = _Finder(facts, reads)
    for node in graph.nodes:
        if node not in found and finder.begins(node):
            found |= finder.grown(node, values)
    return found


class _Finder:
    def __init__(self, facts: Known, reads: Reads) -> None:
        self.facts, self.reads = facts, reads

    def begins(self, node: fx.Node) -> bool:
        """Whether a node mixes what a view in front of it has split."""
        if node.meta["const"] or node.op not in ("call_function", "call_method") or not self.is_known(node):
            return False
        if node.target in self.facts.recorder.functions:
            return key_of(node.target) not in FUNCTIONS  # a rule of the user's says what it is
        given = self._given(node)
        return name_of(node) in _MIXES and bool(given) and all(name_of(n) in _VIEWS for n in given)

    def is_known(self, node: fx.Node) -> bool:
        """Whether a node may lie in a segment: what it computes is affine in one of the values that it reads."""
        if node.meta["const"] or node in self.reads.mutates or node in self.reads.partial:
            return False
        if node.op == "call_module":
            return isinstance(node.meta.get("module"), (nn.modules.dropout._DropoutNd, nn.Identity))
        name = name_of(node)
        if node.op not in ("call_function", "call_method") or node.op == "placeholder":
            return False
        if node.target in self.facts.recorder.functions or cast_target(node) is not None or drops(node) is False:
            return len(self._given(node)) == 1
        if name in _MIXES or name in ("mul", "truediv", "div"):
            return len(self._given(node)) == 1
        return name in _VIEWS or name in _OTHERS

    def _given(self, node: fx.Node) -> list[fx.Node]:
        """The values that a node computes with."""
        kinds = ("tensor", "sequence", "unknown")
        varying = [n for n in node.all_input_nodes if not n.meta["const"] and n.meta.get("kind") in kinds]
        if any(self.reads.of(node, n) is not n for n in varying):
            return []
        return [n for n in varying if not self._is_size(n)]

    def _is_size(self, node: fx.Node) -> bool:
        return bool(metadata_read(node)) or (node.meta.get("kind") == "unknown" and not self.is_known(node))

    def grown(self, seed: fx.Node, values: bool) -> dict[fx.Node, Op]:
        """The segment around a node, as it is to the planner; nothing where it does not close."""
        for inner, source, layout in reversed(self._ends(seed)):
            end = inner[-1]
            made = self._measured(inner, source, layout, values)
            if made is not None:
                given = {n: self._given(n) for n in inner if n is not end}
                return {**{n: Inner(g[0], others=tuple(g[1:])) for n, g in given.items()}, end: made}
        return {}

    def _ends(self, seed: fx.Node) -> list[tuple[list[fx.Node], fx.Node, tuple[int, int]]]:
        """The segments around a node that begin and end with the same axes, small ones first."""
        found: list[tuple[list[fx.Node], fx.Node, tuple[int, int]]] = []
        end = seed
        for _ in range(MAX_NODES):
            inner, source = self._behind(end)
            if source is None or not self._is_closed(inner, end):
                break
            layout = self._layout(source, end)
            found += [(inner, source, layout)] if layout is not None else []
            users = [u for u in end.users if not is_inert(u)]
            if len(users) != 1 or not self.is_known(users[0]):
                break
            end = users[0]
        return found

    def _behind(self, end: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
        """The operations up to a node in the order in which they run, and the one value that they are of."""
        inner, sources, stack = {end}, set[fx.Node](), [end]
        while stack:
            for node in self._given(stack.pop()):
                if not self.is_known(node):
                    sources.add(node)
                elif node not in inner:
                    inner.add(node)
                    stack.append(node)
            if len(inner) > MAX_NODES:
                return [], None
        ordered = sorted(inner, key=self.reads.position.__getitem__)
        return self._without_casts(ordered, sources.pop()) if len(sources) == 1 else (ordered, None)

    def _without_casts(self, ordered: list[fx.Node], source: fx.Node) -> tuple[list[fx.Node], fx.Node]:
        """A segment without casts at its beginning, which may stand in other code than what mixes."""
        while len(ordered) > 1 and cast_target(ordered[0]) is not None:
            first = ordered[0]
            if any(source in self._given(n) for n in ordered[1:]):
                break
            ordered, source = ordered[1:], first
        return ordered, source

    def _is_closed(self, inner: list[fx.Node], end: fx.Node) -> bool:
        """Whether nobody else computes with what lies inside."""
        held = set(inner)
        return all(u in held or is_inert(u) for n in inner if n is not end for u in n.users)

    def _layout(self, source: fx.Node, end: fx.Node) -> tuple[int, int] | None:
        """Which axis of a value the channels are, and how many axes there are, where nothing but them changes."""
        before, after = self.facts.shape(source), self.facts.shape(end)
        if before is None or after is None or len(before) != len(after) or not 2 <= len(before) <= MAX_AXES + 2:
            return None
        rank = len(before)
        last = before[:-1] == after[:-1]
        first = before[0] == after[0] and before[2:] == after[2:]
        behind = self.facts.behind(source)
        conv = behind not in (None, 0) or any(
            isinstance(u.meta.get("module"), nn.modules.conv._ConvNd) for u in source.users
        )
        if last and not (conv and first and rank > 2):
            return rank - 1, rank
        return (1, rank) if first else None

    def _measured(self, inner: list[fx.Node], source: fx.Node, layout: tuple[int, int], values: bool) -> Affine | None:
        (axis, rank), end = layout, inner[-1]
        shape = self.facts.shape(source)
        assert shape is not None
        held: Kernel | None = None

        def find() -> tuple[Kernel, Work] | None:
            nonlocal held
            run = _Run(self.facts, inner, source, axis)
            if not values or all_affine(run, shape[axis], rank - 2):
                return None
            response = measure(run, shape[axis], rank - 2)
            held = _as_laid_out(response.kernel, axis, rank) if isinstance(response, Response) else None
            return None if held is None or not isinstance(response, Response) else (held.shape_only(), response.work)

        found = decided("segment", inner, find, None)
        if found is None:
            return None
        if held is None:
            find()

        def load() -> Kernel:
            assert held is not None
            return held

        constants = (n for node in inner for n in node.all_input_nodes if n.meta["const"])
        owners = tuple(dict.fromkeys(p for n in constants for p in self.facts.cone(n)))
        return Affine(
            source, found[0], load, owners, layer=True, paradigm="impulse", rank_guard=rank, computed=True,
            work=found[1], inner=tuple(n for n in inner if n is not end), read=tuple(self._given(end)),
        )  # fmt: skip


def _as_laid_out(kernel: Kernel, axis: int, rank: int) -> Kernel | None:
    """A kernel that was measured with its channels in front, for channels that stand last."""
    if axis == 1 and rank > 2:
        return kernel
    axes = kernel.axes or ()
    if any((a.kernel_size, a.stride, a.before, a.after) != (1, 1, 0, 0) for a in axes) or kernel.weight is None:
        return None
    weight = kernel.weight.reshape(*kernel.weight.shape[:2], *[1] * max(len(axes), 1))
    return replace(kernel, axes=(), weight=pointwise_to_linear(weight))


class _Run(nn.Module):
    """A segment as a function of its value in float64, with the channels second."""

    def __init__(self, facts: Known, inner: list[fx.Node], source: fx.Node, axis: int) -> None:
        super().__init__()
        self.run, self.inner, self.source, self.axis = facts.recorder.known.run, inner, source, axis
        self.held = {n: facts.exact(n) for n in _needed(inner, source) if n.meta["const"]}
        self.eval()

    def __deepcopy__(self, memo: Any) -> _Run:
        made: _Run = copy.copy(self)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """What the operations give."""
        memo: dict[fx.Node, Any] = {**self.held, self.source: x.movedim(1, self.axis)}
        for node in self.inner:
            memo[node] = self._value(node, memo)
        found: Tensor = memo[self.inner[-1]].movedim(self.axis, 1)
        return found.clone()

    def _value(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        if node in memo:
            return memo[node]
        if cast_target(node) is not None or node.op == "call_module":
            return self._value(node.args[0], memo)  # type: ignore[arg-type]
        if node.op == "placeholder" or (node.meta.get("kind") == "tensor" and node not in self.inner):
            raise RuntimeError("it reads another value")
        both = (fx.node.map_arg(a, lambda n: self._value(n, memo)) for a in (node.args, node.kwargs))
        return self.run(node, *both)


def _needed(inner: list[fx.Node], source: fx.Node) -> set[fx.Node]:
    """What the operations of a segment read, and the numbers that they are given are worked out from."""
    found, stack = set(inner), list(inner)
    while stack:
        fresh = [n for n in stack.pop().all_input_nodes if n not in found and n is not source]
        found.update(fresh)
        stack += [n for n in fresh if not n.meta["const"]]
    return found
