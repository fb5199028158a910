"""Facts: ranks, shapes, channel counts and dtypes of the values of a trace, beside its constants."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, fx, nn

from reptool.capture.graph_builder import Writing
from reptool.ir.aliasing import Reads
from reptool.ir.nodes import name_of, weight_argument
from reptool.ir.ops import Affine, Concat, Op, Reduced, Sum, View
from reptool.ir.shapes import keeps_shape
from reptool.ir.trace import Unanswerable
from reptool.lift.reading import Lifted
from reptool.plan.inference.constants import Constants
from reptool.plan.inference.ranks import ORDERS, RANKED_MODULES, SAME_RANK, keeps_rank, module_rank, reshaped_rank
from reptool.probing.opaque import Responses
from reptool.refusal import Refusal
from reptool.rules.lifting import Lift
from reptool.rules.reading import Stated

_CASTS = {"to", "float", "half", "type_as"}
_POOLS = {n: tuple(getattr(nn, f"{k}Pool{n}d") for k in ("Max", "AdaptiveMax")) for n in (1, 2, 3)}
"""Modules that leave the channels in front of so many axes as they are, and are no affine map."""
_ARITHMETIC = {
    "add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "div_", "itruediv",
    "maximum", "minimum", "where",
}  # fmt: skip


class Facts(Constants):
    """Answers about the nodes of one trace, each worked out once."""

    def __init__(
        self, recorder: Writing, reads: Reads, ops: dict[fx.Node, Op], responses: Responses | None = None,
        stated: Stated | None = None,
    ) -> None:  # fmt: skip
        super().__init__(recorder)
        self.reads, self.ops, self.responses = reads, ops, responses
        self.stated, self.active = stated, frozenset[str]() if stated is None else stated.active
        self.shown = True  # whether the example inputs may be looked at
        self._blind: Facts | None = None
        self._rank: dict[fx.Node, int | None] = {}
        self._by_readers: dict[fx.Node, int | None] = {}
        self._channels: dict[tuple[fx.Node, int], int | None] = {}

    # --- shapes
    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions of a value, None when unknown."""
        if node not in self._rank:
            self._rank[node] = None  # cuts loops
            found = self._infer_rank(node)
            if found is None:
                found = self._rank_by_readers(node)
            if found is None:
                shape = self.shape(node)
                found = None if shape is None else len(shape)
            self._rank[node] = found
        return self._rank[node]

    def stated_rank(self, node: fx.Node) -> int | None:
        """The rank that the code itself fixes, whatever the example inputs are."""
        if self._blind is None:
            self._blind = Facts(self.recorder, self.reads, self.ops)
            self._blind.shown = False
        return self._blind.rank(node)

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape of a value on the example inputs, None when nothing is known."""
        while node.meta.get("share"):
            node = node.all_input_nodes[0]  # of the shape of what it scales
        if not self.recorder.knows_inputs or not self.shown:
            return None
        try:
            value = self.recorder.evaluate(node)
        except Unanswerable:
            return None
        return tuple(value.shape) if isinstance(value, Tensor) else None

    def _infer_rank(self, node: fx.Node) -> int | None:
        op = self.ops.get(node)
        if isinstance(op, Affine) and op.shape.axes:
            shape = self.shape(node)  # of what has no batch there is one axis less
            return len(op.shape.axes) + 2 if shape is None else len(shape)
        op = op.whole if isinstance(op, Reduced) else op
        if isinstance(op, View) and op.sizes is not None:
            return len(op.sizes)
        if isinstance(op, (Affine, Sum, Concat)):
            read = [op.source] if isinstance(op, Affine) else op.sources
            known = [r for r in map(self.rank, read) if r is not None]
            return max(known) if known else None
        if node.op == "call_module":
            return module_rank(node, self.rank)
        name = name_of(node)
        first = node.args[0] if node.args else node.kwargs.get("input")
        if node.op in ("call_function", "call_method"):
            if keeps_shape(node) and isinstance(first, fx.Node):
                return self.rank(first)
            if name in _ARITHMETIC:
                ranks = [self.rank(n) for n in node.all_input_nodes if n.meta.get("kind") == "tensor"]
                found = [r for r in ranks if r is not None]
                return max(found) if found and len(found) == len(ranks) else None
            return reshaped_rank(node, name, first, self.rank)
        return None

    def _rank_by_readers(self, node: fx.Node) -> int | None:
        """The rank that a layer reading this value expects (of batched values)."""
        for reader in self.reads.readers.get(node, ()):
            name = name_of(reader)
            if reader.op == "call_module" and reader.args and reader.args[0] is node:
                for cls, rank in RANKED_MODULES:
                    if isinstance(reader.meta.get("module"), cls):
                        return rank
            elif name[:-2] in ("conv", "conv_transpose") and reader.args and reader.args[0] is node:
                return int(name[-2]) + 2
            if name in SAME_RANK | ORDERS or keeps_rank(reader):
                if reader not in self._by_readers:
                    self._by_readers[reader] = self._rank_by_readers(reader)
                if self._by_readers[reader] is not None:
                    return self._by_readers[reader]
        return None

    def channels(self, node: fx.Node, behind: int) -> int | None:
        """Size of the axis with `behind` axes behind it, None when unknown."""
        key = (node, behind)
        if key not in self._channels:
            self._channels[key] = None  # cuts loops
            self._channels[key] = self._infer_channels(node, behind)
        return self._channels[key]

    def _infer_channels(self, node: fx.Node, behind: int) -> int | None:
        seen: set[fx.Node] = set()
        wanted = behind
        at: fx.Node | None = node
        while at is not None and at not in seen:
            seen.add(at)
            op = self.ops.get(at)
            op = op.whole if isinstance(op, Reduced) else op
            if isinstance(op, Affine):
                if op.shape.axes is not None and len(op.shape.axes) != behind:
                    break
                if op.shape.out_channels is not None:
                    return op.shape.out_channels
                at = op.source
            elif isinstance(op, Sum) or (op is None and at.op != "call_module" and name_of(at) in _ARITHMETIC):
                read = (
                    op.sources
                    if isinstance(op, Sum)
                    else [n for n in at.all_input_nodes if n.meta.get("kind") == "tensor"]
                )
                known = [c for c in (self.channels(n, behind) for n in read if not n.meta["const"]) if c is not None]
                if max(known, default=0) > 1:
                    return max(known)
                break
            elif isinstance(op, View) and behind in op.moves.values():
                behind = next(old for old, new in op.moves.items() if new == behind)
                at = op.source
            elif isinstance(op, Concat) and op.axes == behind:
                parts = [self.channels(s, behind) for s in op.sources]
                return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)
            elif at.args and (keeps_shape(at) or isinstance(at.meta.get("module"), _POOLS.get(behind, ()))):
                at = at.args[0] if isinstance(at.args[0], fx.Node) else None
            else:
                break
        shape = self.shape(node)
        return shape[-1 - wanted] if shape is not None and 0 <= wanted < len(shape) else None

    def dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of a value: that of the weights of the layer it comes from, or of the example; None if unknown."""
        found = self.stated_dtype(node)
        if found is None and self.recorder.knows_inputs:
            with contextlib.suppress(Unanswerable):
                value = self.recorder.evaluate(node)
                return value.dtype if isinstance(value, Tensor) else None
        return found

    def unsure(self, node: fx.Node) -> bool:
        """Whether the layer behind which a value stands computes in the dtype of a value of which none is known."""
        op = self.ops.get(node)
        while isinstance(op, Affine) and not op.layer:
            node = op.source
            op = self.ops.get(node)
        return isinstance(op, Affine) and self.follows(node)

    def stated_dtype(self, node: fx.Node) -> torch.dtype | None:
        """The dtype of the weights of the layer behind which a value stands."""
        at: fx.Node | None = node
        while at is not None:
            op = self.ops.get(at)
            if isinstance(op, Affine) and op.layer:
                held = self._parameter(at)
                return None if held is None else held.dtype
            if isinstance(op, Affine):
                at = None if op.paradigm == "cast" else op.source
            elif keeps_shape(at) and name_of(at) not in _CASTS and at.args and isinstance(at.args[0], fx.Node):
                at = at.args[0]
            else:
                return None
        return None

    def _parameter(self, node: fx.Node) -> Tensor | None:
        """A weight of a layer."""
        if node.op == "call_module":
            return next((p for p in node.meta["module"].parameters() if p.is_floating_point()), None)
        weight = weight_argument(node)
        value = self.constant(weight) if weight is not None and weight.meta["const"] else None
        return value if isinstance(value, Tensor) else None

    def channels_expected(self, node: fx.Node) -> int | None:
        """Channels that a layer reading this value expects, None when no reader tells."""
        for reader in self.reads.readers.get(node, ()):
            module = reader.meta.get("module")
            if reader.op == "call_module" and isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                count = getattr(module, "in_channels", None) or getattr(module, "in_features", None)
                return int(count) if count else None
        return None

    def width_expected(self, node: fx.Node, behind: int) -> int | None:
        """As `channels_expected`, of readers whose channels have so many axes behind them."""
        for reader in self.reads.readers.get(node, ()):
            module, op = reader.meta.get("module"), self.ops.get(reader)
            if isinstance(op, View) and behind in op.moves:
                found = self.width_expected(reader, op.moves[behind])
                if found is not None:
                    return found
            if reader.op != "call_module" or not reader.args or reader.args[0] is not node:
                continue
            if isinstance(module, nn.modules.conv._ConvNd) and len(module.kernel_size) == behind:
                return int(module.in_channels)
            if isinstance(module, nn.Linear) and behind == 0:
                return int(module.in_features)
        return None

    def opaque(self, node: fx.Node, source: fx.Node) -> Affine | Refusal | None:
        """A module whose code is not read as an affine map of `source`."""
        if self.responses is None:
            return None
        rank = self.rank(source)
        channels = None if rank is None else self.channels(source, rank - 2)
        shape = self.shape(source)
        return self.responses.of(node, source, rank, channels, shape)

    def own(self, node: fx.Node, rule: Lift) -> Lifted:
        """What a rule of the user's says that an operation is."""
        return None if self.stated is None else self.stated.of(node, rule, self.recorder.prefix, self)

    def behind(self, node: fx.Node) -> int | None:
        """Axes behind the channels of the layer that makes this value, None when no layer does."""
        op, moved = self.ops.get(node), list[View]()
        while isinstance(op, View) or (isinstance(op, Affine) and not op.layer):
            moved += [op] if isinstance(op, View) else []
            op = self.ops.get(op.source)
        found = len(op.shape.axes or ()) if isinstance(op, Affine) else None
        for view in reversed(moved):
            found = None if found is None else view.moves.get(found)
        return found
