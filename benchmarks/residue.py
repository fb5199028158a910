"""What could still be collapsed in a model's executed aten graph, judged without the tool under test.

    residue(model, args, kwargs) -> Counter of foldable sites
        conv_bn        norm (eval) fed only by one convolution / linear
        bn_conv        norm feeding only one convolution, exact (no padding)
        conv_scale     per-channel constant mul/add right after a convolution used nowhere else
        add            sum of branches from one tensor, all linear, at least one convolution
        cat            concat of convolutions of one tensor with one geometry (dense or depthwise-free)
        seq            convolution after convolution, exact at the border, fewer MACs merged
        weight_expr    convolution whose weight is computed from constants at every call

The program is recorded while it really runs (no proxies), so control flow that hangs on data does not matter.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

Node = fx.Node


def nested(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in containers and plain objects."""
    if isinstance(value, Tensor):
        yield value
    elif depth > 6 or isinstance(value, (str, int, float, nn.Module, type)) or value is None:
        return
    elif isinstance(value, dict):
        for v in value.values():
            yield from nested(v, depth + 1)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from nested(v, depth + 1)
    elif hasattr(value, "__dict__"):
        yield from nested(vars(value), depth + 1)


class Record(TorchDispatchMode):
    """Writes every aten operation that runs into `graph`."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.node: dict[int, Node] = {}
        self.alive: list[Any] = []
        for i, tensor in enumerate(inputs):
            self.keep(tensor, self.graph.placeholder(f"input_{i}"))

    def keep(self, tensor: Tensor, node: Node) -> None:
        """Remember which node made a tensor."""
        self.alive.append(tensor)
        self.node[id(tensor)] = node
        node.meta["val"] = tensor.shape

    def read(self, value: Any) -> Any:
        """Tensors to their nodes; unknown ones are constants."""
        if isinstance(value, Tensor):
            if id(value) not in self.node:
                self.keep(value, self.graph.create_node("get_attr", f"constant_{len(self.node)}"))
            return self.node[id(value)]
        if isinstance(value, (list, tuple)):
            return [self.read(v) for v in value]
        if isinstance(value, (int, float, str, bool)) or value is None:
            return value
        return str(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = self.read(list(args)), {k: self.read(v) for k, v in kwargs.items()}
        out = func(*args, **kwargs)
        node = self.graph.create_node("call_function", func, tuple(read[0]), read[1])
        if isinstance(out, Tensor):
            self.keep(out, node)
        elif isinstance(out, (list, tuple)):
            for i, item in enumerate(out):
                if isinstance(item, Tensor):
                    self.keep(item, self.graph.call_function(getitem, (node, i)))
        return out


def getitem(value: Any, index: int) -> Any:
    """One result of an operation with many."""
    return value[index]


def trace(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Graph:
    """The executed program."""
    with torch.no_grad(), Record(list(nested((args, kwargs)))) as record:
        outputs = [record.node[id(t)] for t in nested(call(*args, **kwargs)) if id(t) in record.node]
    record.graph.output(tuple(outputs))
    record.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or name(n).endswith("_"))
    return record.graph


def name(node: Node) -> str:
    """The bare name of an aten operation, with its underscore."""
    target = node.target
    schema = getattr(target, "_schema", None)
    if node.op == "call_function" and schema is not None:
        return str(schema.name.split("::")[1])
    return "getitem" if target is getitem else node.op


def bare(node: Node) -> str:
    """The name of an aten operation without its underscore."""
    return name(node).rstrip("_")


def shape(node: Node) -> tuple[int, ...] | None:
    """The shape of a node's value."""
    found = node.meta.get("val")
    return None if found is None else tuple(found)


_VIEWS = ("clone", "detach", "alias", "contiguous", "_to_copy", "dropout")
_FLAT = ("view", "_unsafe_view", "reshape", "flatten")


class Judge:
    """Finds the foldable sites of one graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.found: list[tuple[str, str]] = []
        self.const: set[Node] = set()
        for node in graph.nodes:
            inputs = node.all_input_nodes
            made = node.op == "call_function" and all(i in self.const for i in inputs)
            if node.op == "get_attr" or made:
                self.const.add(node)
        for node in graph.nodes:
            if node.op == "call_function" and node not in self.const:
                self.judge(node)

    # --- what a node is
    def conv(self, n: Node) -> bool:
        """A convolution with constant weights."""
        return n.op == "call_function" and bare(n) == "convolution" and n.args[1] in self.const

    def linear(self, n: Node) -> bool:
        """A linear layer."""
        named = n.op == "call_function" and bare(n) in ("addmm", "mm", "linear")
        return named and any(a in self.const for a in n.all_input_nodes)

    def norm(self, n: Node) -> bool:
        """A batch normalization by stored statistics."""
        if n.op != "call_function" or "batch_norm" not in bare(n):
            return False
        if bare(n) == "native_batch_norm" and n.args[5]:
            return False
        inputs = n.all_input_nodes
        return all(i in self.const for i in inputs[1:]) and inputs[0] not in self.const

    def view(self, n: Node) -> bool:
        """An operation that keeps values and layout."""
        return n.op == "call_function" and bare(n) in _VIEWS

    @staticmethod
    def source(n: Any) -> Any:
        """Step back over the first result of an operation with many."""
        while isinstance(n, Node) and n.target is getitem:
            n = n.args[0]
        return n

    def output(self, n: Node) -> Node:
        """The node that holds a norm's first result."""
        return next((u for u in n.users if u.target is getitem), n) if self.norm(n) else n

    def users(self, n: Node) -> list[Node]:
        """Readers of a value, across views."""
        out: list[Node] = []
        for user in self.output(n).users:
            out += self.users(user) if self.view(user) else [user]
        return out

    def single(self, n: Node) -> bool:
        """Whether a value has one reader."""
        return len(self.users(n)) == 1

    def input(self, n: Node) -> Any:
        """What an operation reads, across views."""
        before = self.source(n.args[0])
        while isinstance(before, Node) and self.view(before):
            before = self.source(before.args[0])
        return before

    def per_channel(self, n: Node, other: Node) -> bool:
        """Whether a constant varies along the channel axis of a feature map alone."""
        mine, its = shape(n), shape(other)
        if mine is None or its is None or len(its) not in (4, 5):
            return False
        padded = (1,) * (len(its) - len(mine)) + mine
        return all(d == 1 for i, d in enumerate(padded) if i != 1)

    def operands(self, n: Node) -> tuple[Any, Any] | None:
        """(value, constant) of an operation between the two."""
        if len(n.args) < 2 or not all(isinstance(a, Node) for a in n.args[:2]):
            return None
        a, b = n.args[:2]
        if (a in self.const) == (b in self.const):
            return None
        return (self.source(b), a) if a in self.const else (self.source(a), b)

    def chain(self, n: Node) -> tuple[Any, int]:
        """Walk back through linear operations read once: (root, convolutions on the way)."""
        convs, first = 0, True
        while True:
            n = self.source(n)
            if not isinstance(n, Node) or n.op != "call_function" or n in self.const:
                return n, convs
            if self.view(n):
                n = n.args[0]
                continue
            if not first and not self.single(n):
                return n, convs
            if self.conv(n):
                convs += 1
                n = self.input(n)
            elif self.norm(n) or self.plain_pool(n):
                n = self.input(n)
            elif bare(n) in ("mul", "add", "sub", "div") and self.operands(n) is not None:
                value, constant = self.operands(n) or (None, None)
                if not self.per_channel(constant, n):
                    return n, convs
                n = value
            elif bare(n) in ("add", "sub") and len(n.args) >= 2 and all(isinstance(q, Node) for q in n.args[:2]):
                (left, a), (right, b) = self.chain(n.args[0]), self.chain(n.args[1])
                return (left, convs + a + b) if left is right else (n, convs)
            else:
                return n, convs
            first = False

    @staticmethod
    def plain_pool(n: Node) -> bool:
        """An average pool that is a convolution."""
        if bare(n) != "avg_pool2d" or (len(n.args) > 4 and n.args[4]):
            return False
        padding = n.args[3] if len(n.args) > 3 else []
        return all(q == 0 for q in padding) or bool(n.args[5] if len(n.args) > 5 else True)

    # --- the sites
    def hit(self, kind: str, n: Node) -> None:
        """Write a site down."""
        self.found.append((kind, str(n)))

    def judge(self, n: Node) -> None:
        """All sites that end in one node."""
        if self.norm(n):
            self.judge_norm(n)
        elif self.conv(n):
            self.judge_conv(n)
        elif bare(n) in ("add", "sub"):
            self.judge_add(n)
        elif bare(n) in ("mul", "div"):
            self.judge_scale(n)
        elif bare(n) == "cat":
            self.judge_cat(n)

    def judge_norm(self, n: Node) -> None:
        """Norms behind and before a layer."""
        before = self.input(n)
        flat = before
        while isinstance(flat, Node) and bare(flat) in _FLAT and self.single(flat):
            flat = self.source(flat.args[0])
        mine, its = shape(before), shape(flat)
        last = mine and its and len(mine) == 2 and its[-1] == mine[-1]
        behind = self.conv(before) and self.single(before)
        if behind or (self.linear(flat) and last and (flat is before or self.single(flat))):
            self.hit("conv_bn", n)
        users = self.users(n)
        if len(users) == 1 and self.conv(users[0]) and not behind and all(q == 0 for q in users[0].args[4]):
            self.hit("bn_conv", n)

    def judge_conv(self, n: Node) -> None:
        """Computed weights, and a convolution behind another."""
        if n.args[1].op != "get_attr":
            self.hit("weight_expr", n)
        first = self.input(n)
        if not (isinstance(first, Node) and self.conv(first) and self.single(first)) or n.args[6] or first.args[6]:
            return
        later, early = shape(n.args[1]), shape(first.args[1])
        if not (early and later and len(early) == len(later) == 4):
            return
        stride, padding, dilation = first.args[3], first.args[4], first.args[5]
        plain = first.args[2] is None
        exact = all(
            q == 0 or (k == 1 and p == 0 and s == 1 and plain)
            for q, k, p, s in zip(n.args[4], early[2:], padding, stride, strict=False)
        )
        inputs, middle, out = shape(self.input(first)), shape(first), shape(n)
        if not (exact and inputs and middle and out):
            return
        area = out[2] * out[3]
        apart = math.prod(early) * middle[2] * middle[3] + math.prod(later) * area
        groups = math.gcd(first.args[8], n.args[8])
        size = [
            (a - 1) * d + s * (b - 1) * e + 1
            for a, b, d, s, e in zip(early[2:], later[2:], dilation, stride, n.args[5], strict=False)
        ]
        if later[0] * (inputs[1] // groups) * math.prod(size) * area <= apart:
            self.hit("seq", n)

    def judge_add(self, n: Node) -> None:
        """Sums of branches, and constants added to a layer."""
        if len(n.args) != 2 or not all(isinstance(a, Node) for a in n.args):
            return
        pair = self.operands(n)
        if pair is not None:
            if self.conv(pair[0]) and self.single(pair[0]) and self.per_channel(pair[1], pair[0]):
                self.hit("conv_scale", n)
            return
        left, right = self.source(n.args[0]), self.source(n.args[1])
        (a, i), (b, j) = self.chain(left), self.chain(right)
        a, b = self.back(a), self.back(b)
        used = all(s is r or self.single(s) for s, r in ((left, a), (right, b)))
        if a is b and i + j >= 1 and used and len(shape(n) or ()) == 4:
            self.hit("add", n)

    def back(self, n: Any) -> Any:
        """Step back over views."""
        while isinstance(n, Node) and self.view(n):
            n = self.source(n.args[0])
        return n

    def judge_scale(self, n: Node) -> None:
        """Constants that multiply a layer."""
        pair = self.operands(n)
        if pair is not None:
            if self.conv(pair[0]) and self.single(pair[0]) and self.per_channel(pair[1], pair[0]):
                self.hit("conv_scale", n)
        elif len(n.args) == 2 and isinstance(n.args[0], Node) and not isinstance(n.args[1], Node):
            value = self.source(n.args[0])
            if self.conv(value) and self.single(value):
                self.hit("conv_scale", n)

    def judge_cat(self, n: Node) -> None:
        """Concatenated convolutions of one tensor."""
        parts = [self.source(x) for x in n.args[0]] if isinstance(n.args[0], (list, tuple)) else []
        axis = n.args[1] if len(n.args) > 1 else 0
        if axis != 1 or len(parts) < 2 or not all(self.conv(x) and self.single(x) for x in parts):
            return
        one = len({self.input(x) for x in parts}) == 1
        geometry = {
            (tuple(shape(x.args[1]) or ())[2:], tuple(x.args[3]), tuple(x.args[4]), tuple(x.args[5]), x.args[8])
            for x in parts
        }
        if one and len(geometry) == 1 and parts[0].args[8] == 1:
            self.hit("cat", n)


def residue(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Count foldable sites of one executed forward; also where each one is."""
    judge = Judge(trace(model, args, kwargs or {}))
    return Counter(kind for kind, _ in judge.found), judge.found
