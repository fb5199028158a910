"""Helpers of every lift: the context of a node, its arguments, its sources and its constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from reptool.algebra.kernel import Kernel, identity
from reptool.ir.ops import Affine, Op
from reptool.refusal import Refusal

Lifted = Op | Refusal | None


class Context:
    """What lifting needs to know beyond one node: constants, ranks, channels, reads."""

    def __init__(
        self,
        constant: Callable[[fx.Node], Any],
        exact: Callable[[fx.Node], Any],
        read: Callable[[fx.Node, fx.Node], fx.Node | None],
        rank: Callable[[fx.Node], int | None],
        channels: Callable[[fx.Node, int], int | None],
        cone: Callable[[fx.Node], tuple[str, ...]],
        behind: Callable[[fx.Node], int | None],
        dtype: Callable[[fx.Node], torch.dtype | None],
        stated: Callable[[fx.Node], int | None],
        ops: dict[fx.Node, Op],
        opaque: Callable[[fx.Node, fx.Node], Lifted] = lambda node, source: None,
        taken: Callable[[fx.Node], Sequence[fx.Node]] = lambda node: (),
        expected: Callable[[fx.Node, int], int | None] = lambda node, behind: None,
        unsure: Callable[[fx.Node], bool] = lambda node: False,
        own: Callable[[fx.Node, Any], Lifted] = lambda node, rule: None,
        active: frozenset[str] = frozenset(),
    ) -> None:
        self.own, self.active = own, active
        self.unsure = unsure
        self.taken, self.expected = taken, expected
        self.ops, self.opaque = ops, opaque
        self.constant, self.exact, self.read, self.cone = constant, exact, read, cone
        self.channels, self.behind, self.dtype, self.stated = channels, behind, dtype, stated
        self._rank, self._moved = rank, 0
        self.batch = 1
        self.asked = False
        self.ends: dict[tuple[fx.Node, int], Any] = {}  # of axes of values, once followed: see `layout.sizes`
        self._others: dict[tuple[int, bool], Context] = {}

    def rank(self, node: fx.Node) -> int | None:
        """Number of dimensions of a value, None when unknown."""
        self.asked = True
        found = self._rank(node)
        return None if found is None else found + self._moved

    def axes(self, rank: int) -> int:
        """Axes behind the channels of a value of this rank."""
        return rank - 1 - self.batch

    def at_ranks(self, moved: int, batched: bool) -> Context:
        """The same as if every value had so many dimensions more; `batched` ones have no batch then."""
        if (moved, batched) not in self._others:
            other = self._others[moved, batched] = copy(self)
            other._moved, other.batch, other.ends = moved, 1 - batched, {}
        return self._others[moved, batched]


def source_of(node: fx.Node, source: Any, ctx: Context) -> fx.Node | None:
    """The value that `node` sees when it reads `source`; None for a constant, and where that is not known."""
    if not isinstance(source, fx.Node) or source.meta["const"]:
        return None
    return ctx.read(node, source)


def arguments(node: fx.Node, names: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None where one is unknown."""
    if len(node.args) > len(names) or any(k not in names for k in node.kwargs):
        return None
    out = dict(defaults)
    out.update(zip(names, node.args, strict=False))
    out.update(node.kwargs)
    return out


def ints(value: Any, count: int) -> tuple[int, ...] | None:
    """A number or a sequence as `count` integers, None if it is neither."""
    if type(value) is int:
        return (value,) * count
    if isinstance(value, (tuple, list)) and all(type(v) is int for v in value):
        if len(value) == 1:
            return (value[0],) * count
        return tuple(value) if len(value) == count else None
    return None


def affine(node: fx.Node, source: fx.Node | None, shape: Kernel, load: Callable[[], Kernel], **kw: Any) -> Lifted:
    """An affine map of `source`, None where there is no source."""
    return None if source is None else Affine(source, shape.shape_only(), load, **kw)


def fixed(node: fx.Node, source: fx.Node | None, kernel: Kernel, **kw: Any) -> Lifted:
    """An affine map whose kernel is known already."""
    return affine(node, source, kernel, lambda: kernel, **kw)


def handed_on(node: fx.Node, source: Any, ctx: Context) -> Lifted:
    """The source as it is."""
    return fixed(node, source_of(node, source, ctx), identity())


def owned(lifted: Lifted, node: fx.Node) -> Lifted:
    """The same op, owned by the module that does it."""
    return replace(lifted, owners=(str(node.target),)) if isinstance(lifted, Affine) else lifted


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor, None for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def is_computed(*nodes: Any) -> bool:
    """Whether one of these constants is computed rather than held."""
    return any(isinstance(n, fx.Node) and n.op != "get_attr" for n in nodes)


def exact_pair(ctx: Context, weight: fx.Node, bias: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in float64."""
    return ctx.exact(weight), ctx.exact(bias) if isinstance(bias, fx.Node) else None


def cone_of(ctx: Context, *nodes: Any) -> tuple[str, ...]:
    """Paths of the parameters and buffers that these constants are made of."""
    return tuple(dict.fromkeys(p for n in nodes if isinstance(n, fx.Node) for p in ctx.cone(n)))


def is_number(value: Any) -> bool:
    """Whether this is a number of Python or numpy."""
    return type(value) in (int, float) or isinstance(value, (np.integer, np.floating))


def varies(value: Any) -> bool:
    """Whether this is a value that depends on data."""
    return isinstance(value, fx.Node) and not value.meta["const"]


def is_constant(value: Any) -> bool:
    """Whether this is a number or a value that depends on no data."""
    return is_number(value) or (isinstance(value, fx.Node) and value.meta["const"])
