"""Inference: constants in float64, ranks, channel counts and parameter dependencies of the values of a trace."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.graph_builder import Writing
from reptool.ir.aliasing import Reads
from reptool.ir.kinds.casts import is_cast, is_made_like, made_of
from reptool.ir.nodes import name_of, weight_argument
from reptool.ir.ops import Affine, Concat, Op, Reduced, Sum, View
from reptool.ir.shapes import SAME_SHAPE_MODULES, keeps_shape
from reptool.ir.trace import Unanswerable
from reptool.lift.reading import Lifted
from reptool.models.copies import full_copy
from reptool.probing.opaque import Responses
from reptool.refusal import Refusal
from reptool.rules.lifting import Lift
from reptool.rules.reading import Stated

_CASTS = {"to", "float", "half", "type_as"}
_RANKED_MODULES = tuple(
    (getattr(nn, f"{kind}{n}d"), n + 2)
    for kind in ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "BatchNorm")
    for n in (1, 2, 3)
    if (kind, n) != ("BatchNorm", 1)
)
_POOLS = {n: tuple(getattr(nn, f"{k}Pool{n}d") for k in ("Max", "AdaptiveMax")) for n in (1, 2, 3)}
"""Modules that leave the channels in front of so many axes as they are, and are no affine map."""
_SAME_RANK = {"cat", "concat", "pad", "split", "chunk", "split_with_sizes", "tensor_split"}
_ORDERS = {"transpose", "roll", "flip", "swapaxes", "swapdims", "movedim", "moveaxis", "channel_shuffle"}
_ARITHMETIC = {
    "add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div", "div_", "itruediv",
    "maximum", "minimum", "where",
}  # fmt: skip


class Facts:
    """Answers about the nodes of one trace, each worked out once."""

    def __init__(
        self, recorder: Writing, reads: Reads, ops: dict[fx.Node, Op], responses: Responses | None = None,
        stated: Stated | None = None,
    ) -> None:  # fmt: skip
        self.recorder, self.reads, self.ops, self.responses = recorder, reads, ops, responses
        self.stated, self.active = stated, frozenset[str]() if stated is None else stated.active
        self.shown = True  # whether the example inputs may be looked at
        self._blind: Facts | None = None
        self._exact: dict[fx.Node, Any] = {}
        self._rank: dict[fx.Node, int | None] = {}
        self._by_readers: dict[fx.Node, int | None] = {}
        self._channels: dict[tuple[fx.Node, int], int | None] = {}
        self._cones: dict[fx.Node, tuple[str, ...]] = {}

    # --- constants
    def constant(self, node: fx.Node) -> Any:
        """The value of a constant node as the model computes it; None when it cannot be computed."""
        try:
            return self.recorder.evaluate(node)
        except Unanswerable:
            return None

    def exact(self, node: fx.Node) -> Any:
        """The value of a constant node computed in float64 from its parameters."""
        for n in self._missing(node):
            if n.op == "get_attr":
                value = n.meta["tensor"].detach()
                self._exact[n] = value.double() if value.is_floating_point() else value
                continue
            if is_cast(n):
                self._exact[n] = self._rounded(n)
                continue
            value = self.constant(n) if is_made_like(n) else self._computed(n)
            self._exact[n] = value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        return self._exact[node]

    def _computed(self, node: fx.Node) -> Any:
        """What one operation gives for exact values; as the model computes it where it refuses float64."""
        named = fx.node.map_aggregate((node.args, node.kwargs), lambda a: self._in_double(node, a))
        found: Any = fx.node.map_arg(named, lambda n: self._exact[n] if n.meta["const"] else self.constant(n))
        args, kwargs = found
        try:
            with torch.no_grad():
                if node.op == "call_module":
                    return self._double_module(node)(*args, **kwargs)
                if node.op == "call_method" and node.target == "float":
                    return args[0].to(self._in_double(node, torch.float32))
                return self.recorder.known.run(node, args, kwargs)
        except Exception:
            native = self.constant(node)
            if native is None:
                raise
            return native

    def _in_double(self, node: fx.Node, given: Any) -> Any:
        """An argument; float64 for a dtype that the operands fit in, which rounds none of them."""
        if not isinstance(given, torch.dtype) or not given.is_floating_point:
            return given
        dtypes = [v.dtype for v in map(self.constant, node.all_input_nodes) if isinstance(v, Tensor)]
        fits = dtypes and all(d.is_floating_point and torch.promote_types(d, given) == given for d in dtypes)
        return torch.float64 if fits else given

    def _rounded(self, node: fx.Node) -> Any:
        """What a cast gives: the constant rounded to the dtype it is cast to, unless it is of that dtype."""
        source: Any = node.args[0]
        native, before, exact = self.constant(node), self.constant(source), self._exact[source]
        if not all(isinstance(v, Tensor) for v in (native, before, exact)):
            return None
        return (exact if native.dtype == before.dtype else exact.to(native.dtype)).double()

    def _missing(self, node: fx.Node) -> list[fx.Node]:
        order: list[fx.Node] = []
        stack = [(node, False)]
        seen: set[fx.Node] = set()
        while stack:
            n, done = stack.pop()
            if done:
                order.append(n)
            elif n not in seen and n not in self._exact:
                seen.add(n)
                stack.append((n, True))
                stack += [(i, False) for i in made_of(n)]
        return order

    @staticmethod
    def _double_module(node: fx.Node) -> nn.Module:
        return full_copy(node.meta["module"]).double()

    def cone(self, node: fx.Node) -> tuple[str, ...]:
        """Names of the parameters, buffers and modules a constant is computed from."""
        if node not in self._cones:
            found: dict[str, None] = {}
            stack, seen = [node], {node}
            while stack:
                n = stack.pop()
                if n.op in ("get_attr", "call_module"):
                    found[str(n.target)] = None
                for i in made_of(n):
                    if i not in seen:
                        seen.add(i)
                        stack.append(i)
            self._cones[node] = tuple(found)
        return self._cones[node]

    def taken(self, node: fx.Node) -> list[fx.Node]:
        """The values whose dtype a constant is taken to have, where that is not known."""
        if not node.meta.get("cast"):
            return []
        found, stack = [], [node]
        while stack:
            n = stack.pop()
            if n in self.recorder.known.taken:
                found += [i for like in n.all_input_nodes if not like.meta["const"] for i in like.all_input_nodes]
            stack += made_of(n)
        return found

    def follows(self, node: fx.Node) -> bool:
        """Whether a functional layer brings its weight to the dtype of a value of which no dtype is known."""
        weight = None if node.op == "call_module" else weight_argument(node)
        return weight is not None and weight.meta["const"] and bool(self.taken(weight))

    def only_follows(self, node: fx.Node) -> bool:
        """Whether nothing is computed at every call but the cast of `follows`."""
        weight = weight_argument(node) if self.follows(node) else None
        held = weight.args[0] if weight is not None and is_cast(weight) else None
        return isinstance(held, fx.Node) and held.op == "get_attr"

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
            return self._module_rank(node)
        name = name_of(node)
        first = node.args[0] if node.args else node.kwargs.get("input")
        if node.op in ("call_function", "call_method"):
            if keeps_shape(node) and isinstance(first, fx.Node):
                return self.rank(first)
            if name in _ARITHMETIC:
                ranks = [self.rank(n) for n in node.all_input_nodes if n.meta.get("kind") == "tensor"]
                found = [r for r in ranks if r is not None]
                return max(found) if found and len(found) == len(ranks) else None
            return self._reshaped_rank(node, name, first)
        return None

    def _rank_by_readers(self, node: fx.Node) -> int | None:
        """The rank that a layer reading this value expects (of batched values)."""
        for reader in self.reads.readers.get(node, ()):
            name = name_of(reader)
            if reader.op == "call_module" and reader.args and reader.args[0] is node:
                for cls, rank in _RANKED_MODULES:
                    if isinstance(reader.meta.get("module"), cls):
                        return rank
            elif name[:-2] in ("conv", "conv_transpose") and reader.args and reader.args[0] is node:
                return int(name[-2]) + 2
            if name in _SAME_RANK | _ORDERS or _keeps_rank(reader):
                if reader not in self._by_readers:
                    self._by_readers[reader] = self._rank_by_readers(reader)
                if self._by_readers[reader] is not None:
                    return self._by_readers[reader]
        return None

    def _module_rank(self, node: fx.Node) -> int | None:
        module = node.meta.get("module")
        for cls, rank in _RANKED_MODULES:
            if isinstance(module, cls) and node.meta["kind"] == "tensor":
                return rank
        first = node.args[0] if node.args else None
        if isinstance(module, (*SAME_SHAPE_MODULES, nn.Linear, nn.Upsample, nn.PixelShuffle)) and isinstance(
            first, fx.Node
        ):
            return self.rank(first)
        if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            return 2
        return None

    def _reshaped_rank(self, node: fx.Node, name: str, first: Any) -> int | None:
        rest = node.args[1:]
        if name in ("view", "reshape", "permute", "expand", "repeat"):
            sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
            return len(sizes) if sizes and not node.kwargs and not _is_size(sizes) else None
        if name in ("reshape_as", "view_as", "expand_as") and rest and isinstance(rest[0], fx.Node):
            return self.rank(rest[0])
        if name in ("matmul", "bmm", "baddbmm"):
            ranks = [self.rank(n) or 0 for n in node.all_input_nodes]
            return max(ranks) if min(ranks, default=0) > 1 else None  # of a vector or what is unknown: another
        if name in ("mean", "sum", "amax", "amin") and isinstance(first, fx.Node):
            return self._reduced_rank(node, self.rank(first))
        if name == "flatten" and isinstance(first, fx.Node):
            start = rest[0] if rest else node.kwargs.get("start_dim", 0)
            end = rest[1] if len(rest) > 1 else node.kwargs.get("end_dim", -1)
            rank = self.rank(first)
            if start == 1 and end == -1:
                return 2
            if rank is None or type(start) is not int or type(end) is not int:
                return None
            return rank - (end % rank - start % rank)
        if name == "getitem" and isinstance(first, fx.Node) and first.meta.get("kind") == "tensor":
            return self._indexed_rank(self.rank(first), node.args[1])
        if name == "getattr":
            return self.rank(first) if isinstance(first, fx.Node) and rest[0] in ("mT", "T") else None
        if name in _ORDERS and isinstance(first, fx.Node):
            return self.rank(first)
        if name in (
            "adaptive_avg_pool2d",
            "max_pool2d",
            "avg_pool2d",
            "interpolate",
            "conv2d",
            "pad",
            "adaptive_max_pool2d",
        ) and isinstance(first, fx.Node):
            return 4 if name.endswith("2d") else self.rank(first)
        return None

    @staticmethod
    def _indexed_rank(rank: int | None, key: Any) -> int | None:
        """The rank of a value at numbers and slices, with new axes."""
        keys = key if isinstance(key, tuple) else (key,)
        if rank is None or not all(k is None or k is Ellipsis or isinstance(k, slice) or type(k) is int for k in keys):
            return None
        return rank + sum(k is None for k in keys) - sum(type(k) is int for k in keys)

    @staticmethod
    def _reduced_rank(node: fx.Node, rank: int | None) -> int | None:
        """The rank after a reduction along stated axes."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if dims is None and keep is False:
            return 0
        if rank is None or not isinstance(dims, (int, tuple, list)) or type(keep) is not bool:
            return None
        return rank if keep else rank - (1 if isinstance(dims, int) else len(dims))

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


def _keeps_rank(node: fx.Node) -> bool:
    """Whether a reader is a linear layer, a resampling, an index of slices alone or a piece of a split value."""
    if node.op == "call_module":
        return isinstance(node.meta.get("module"), (nn.Linear, nn.Upsample))
    if name_of(node) != "getitem":
        return name_of(node) in ("interpolate", "repeat_interleave") and bool(node.args[1:] or node.kwargs)
    owner, key = node.args
    if isinstance(owner, fx.Node) and owner.meta.get("kind") == "sequence" and type(key) is int:
        return name_of(owner) in _SAME_RANK
    return all(isinstance(k, slice) or k is Ellipsis for k in (key if isinstance(key, tuple) else (key,)))


def _is_size(sizes: Any) -> bool:
    return len(sizes) == 1 and isinstance(sizes[0], fx.Node) and sizes[0].meta.get("kind") == "size"
