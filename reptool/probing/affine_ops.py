"""Affine operations: whether all that a module runs is known to be affine, at every size and whatever the data are.

The module runs once on tensors without data and with symbolic sizes. Code that looks at the data cannot: then nothing
is claimed. What it asks about sizes is collected as conditions; each has to hold at every size tried, up to very large
ones. What is left is a fixed list of operations, in which each one must be affine in what depends on the input: sums,
moves, transforms and means of such values, and products of them with constants, never with each other.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

_JOINT = {
    "add", "sub", "rsub", "neg", "cat", "stack", "sum", "mean", "clone", "copy", "constant_pad_nd", "im2col", "col2im",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "roll", "flip", "cumsum", "view_as_real", "view_as_complex", "real",
    "imag", "select_scatter", "slice_scatter", "diff", "zero", "zeros_like", "new_zeros", "zeros", "ones",
    "full", "empty", "new_empty", "new_full", "empty_like", "ones_like", "full_like", "conj", "_conj",
    "conj_physical", "_fft_r2c", "_fft_c2r", "_fft_c2c", "pixel_shuffle", "pixel_unshuffle", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "fill",
    "contiguous", "lift_fresh_copy", "_unsafe_view", "_reshape_copy", "repeat", "channel_shuffle",
}  # fmt: skip
_VIEWS = {
    "view", "slice", "select", "expand", "permute", "transpose", "t", "squeeze", "unsqueeze", "unfold", "as_strided",
    "alias", "detach", "split", "split_with_sizes", "unbind", "diagonal", "narrow", "_reshape_alias", "lift_fresh",
    "movedim", "reshape", "flatten", "chunk", "getitem", "view_as_real", "view_as_complex", "real", "imag", "conj",
    "_conj",
}  # fmt: skip
_PRODUCTS = {
    "mul", "mm", "bmm", "matmul", "mv", "dot", "convolution", "addmm", "baddbmm", "addcmul", "einsum", "linear",
}  # fmt: skip
_LOOKS = {
    "item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__", "data_ptr",
    "__dlpack__", "is_nonzero", "equal", "allclose", "nonzero", "unique", "storage", "untyped_storage", "__contains__",
}  # fmt: skip
_FIRST_ONLY = {"div", "native_batch_norm", "_native_batch_norm_legit_no_training", "index", "index_select", "gather"}
INDEX_32 = 2**31 - 1
"""Older releases of torch ask whether so many elements can be counted in 32 bits, and compute the same in 64."""
BASES = {0: (), 1: (31,), 2: (23, 29), 3: (11, 13, 17)}
TRIED = (*range(30, 100), 127, 128, 129, 255, 256, 257, 511, 640, 1000, 1023, 1025, 2048, 4097, 65_537, 10_000_019)


def all_affine(module: nn.Module, channels: int, axes: int) -> str:
    """'' if everything the module runs is known to be affine, else what is not known about it.

    >>> all_affine(nn.Conv2d(3, 4, 3).eval(), 3, 2), all_affine(nn.ReLU().eval(), 3, 2)
    ('', 'it runs relu, which is not known to be affine')
    """
    try:
        own = copy.deepcopy(module).double().cpu()
        x = torch.zeros(7, channels, *BASES[axes], dtype=torch.float64)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            made = make_fx(lambda x: _blind(own, x), tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    except Exception as error:
        return f"its operations cannot be listed ({type(error).__name__}: {error})".splitlines()[0][:200]
    return _conditions(made, channels) or _operations(made.graph)


class _LookedError(Exception):
    """The code looks at data."""


class _Blind(TorchFunctionMode):
    """Raises where code takes a number, a list, an array or an address out of a tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOOKS:
            raise _LookedError(name)
        return func(*args, **(kwargs or {}))


def _blind(module: nn.Module, x: Tensor) -> Any:
    with _Blind(), patch.object(FakeTensor, "tolist", _looked):  # that one is called without asking a mode
        return module(x)


def _looked(*_: Any) -> None:
    raise _LookedError("tolist")


def _conditions(made: fx.GraphModule, channels: int) -> str:
    """What holds at some sizes only."""
    env: Any = made.shape_env
    placeholder = next(n for n in made.graph.nodes if n.op == "placeholder")
    shape = placeholder.meta["val"].shape
    symbols = []
    for i, n in enumerate(shape):
        if i == 1:
            continue
        symbol = env.replace(n.node.expr) if isinstance(n, torch.SymInt) else None
        if symbol is None or not symbol.is_Symbol:
            return f"it runs at {n} samples or pixels alone"
        symbols.append(symbol)
    for guard in env.guards:
        if getattr(guard.expr, "rhs", None) == INDEX_32:
            continue
        free = [s for s in guard.expr.free_symbols if s in symbols]
        for k, n in enumerate(TRIED if free else ()):
            at = {s: TRIED[(k + 7 * i) % len(TRIED)] if i else n for i, s in enumerate(free)}
            held = env.replace(guard.expr).xreplace(at)
            held = held.xreplace(dict.fromkeys(held.free_symbols, channels))
            if held not in (True, False) or not bool(held):
                return f"it asks for sizes ({guard.expr})"
    return ""


def _operations(graph: fx.Graph) -> str:
    roots: dict[fx.Node, fx.Node] = {}
    hangs: set[fx.Node] = set()
    before = -1
    while before != len(hangs):  # a value depends on all that is ever written into it
        before = len(hangs)
        for node in graph.nodes:
            if node.op == "placeholder":
                hangs.add(node)
            if node.op != "call_function" or not _is_data(node):
                continue
            name = _name(node)
            first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
            base = roots.get(first, first) if first is not None else None
            if base is not None and (name in _VIEWS or _writes(node)):
                roots[node] = base
            if any(roots.get(n, n) in hangs or n in hangs for n in node.all_input_nodes):
                hangs.add(node)
                if _writes(node) and base is not None:
                    hangs.add(base)
            if roots.get(node) in hangs:
                hangs.add(node)
    for node in graph.nodes:
        if node.op == "call_function" and node in hangs:
            problem = _problem(node, hangs)
            if problem:
                return problem
    if any(n.op == "get_attr" and n in hangs for n in graph.nodes):
        return "it writes into its own tensors"
    return ""


def _problem(node: fx.Node, hangs: set[fx.Node]) -> str:
    name, mixed = _name(node), [n for n in node.all_input_nodes if n in hangs]
    value = node.meta.get("val")
    made = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if isinstance(v, Tensor) and v.numel()]
    if any(not (v.is_complex() or v.dtype is torch.float64) for v in made):
        return f"{name} does not compute in float64"
    if name in _JOINT or name in _VIEWS:
        return ""
    if name in _PRODUCTS:
        return "" if _factors(node, name, hangs) <= 1 else f"{name} multiplies two values that depend on the input"
    if name in _FIRST_ONLY:
        training = name == "native_batch_norm" and node.args[5] is not False
        return "" if mixed == [node.args[0]] and not training else f"{name} depends on the input in other ways"
    return f"it runs {name}, which is not known to be affine"


def _factors(node: fx.Node, name: str, hangs: set[fx.Node]) -> int:
    """How many factors of a product depend on the input (a summand beside it may)."""
    summand = name in ("addmm", "baddbmm", "addcmul")
    factors = node.args[1:] if summand else node.args[:2]
    flat = [f for a in factors for f in (a if isinstance(a, (list, tuple)) else [a])]
    late = name in ("convolution", "linear") and any(isinstance(a, fx.Node) and a in hangs for a in node.args[2:3])
    return sum(isinstance(f, fx.Node) and f in hangs for f in flat) + 2 * late


def _is_data(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value))


def _writes(node: fx.Node) -> bool:
    target = node.target
    return bool(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable)


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        if _writes(node) and not target.overloadpacket.__name__.endswith("_"):
            return f"{target.overloadpacket.__name__}.out"
        name: str = target.overloadpacket.__name__
        return name[:-1] if _writes(node) else name
    return str(getattr(target, "__name__", target))
