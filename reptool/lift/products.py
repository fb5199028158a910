"""Products with a constant matrix: ``x @ W``, ``W @ x``, ``addmm``, ``einsum``, ``tensordot``.

``y[.., o, ..] = sum_c W[o, c] x[.., c, ..]`` is a linear layer where the channels are the last axis, and a pointwise
convolution where they are the second one, for ranks that convolutions have.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from reptool.algebra.kernel import Axis
from reptool.ir.decisions import decided
from reptool.ir.nodes import name_of
from reptool.lift.arithmetic import channel_map
from reptool.lift.constants import MAX_AXES
from reptool.lift.layers.convolutions import layer_of
from reptool.lift.reading import (
    Context,
    Lifted,
    arguments,
    cone_of,
    exact_pair,
    is_computed,
    is_constant,
    is_number,
    shape_of,
    source_of,
    varies,
)
from reptool.refusal import Code, Refusal


def _times(
    node: fx.Node,
    source: Any,
    matrix: Any,
    ctx: Context,
    *,
    behind: int = 0,
    out_first: bool = False,
    bias: Any = None,
    factors: tuple[float, float] = (1.0, 1.0),
) -> Lifted:
    """A value times ``W [C, O]`` (``[O, C]`` with `out_first`) along the axis with `behind` axes behind it.

    ``y = alpha * x @ W + beta * bias`` for the `factors` ``(alpha, beta)``.
    """
    if not isinstance(matrix, fx.Node) or not matrix.meta["const"] or source_of(node, source, ctx) is None:
        return None
    native = ctx.constant(matrix)
    shape = _matrix_shape(node, native)
    if shape is None or not native.is_floating_point():
        return None
    size = shape if out_first else shape[::-1]
    alpha, beta = factors
    bias = None if beta == 0 else bias
    if bias is not None and not _is_row(ctx.constant(bias) if isinstance(bias, fx.Node) else None, size[0], behind):
        return None

    def values() -> tuple[Tensor, Tensor | None]:
        weight, held = exact_pair(ctx, matrix, bias)
        flat = weight.reshape(-1, *shape)[0] * alpha
        added = None if held is None else held.reshape(-1).expand(size[0]) * beta
        return (flat if out_first else flat.t()).reshape(*size, *[1] * behind), added

    return layer_of(
        node, source_of(node, source, ctx), (Axis(),) * behind, size, 1, bias is not None,
        values, cone_of(ctx, matrix, bias), "linear", is_computed(matrix, bias),
    )  # fmt: skip


def _matrix_shape(node: fx.Node, value: Any) -> tuple[int, int] | None:
    """The shape of a matrix, or of one that is the same for every sample of a batch."""
    shape = shape_of(value)
    if shape is None or len(shape) not in (2, 3) or not all(shape):
        return None
    if len(shape) == 3 and shape[0] > 1 and not decided("same", (node,), lambda: _is_repeated(value), False):
        return None
    return shape[-2], shape[-1]


def _is_repeated(value: Tensor) -> bool:
    """Whether every sample of a batch is the same."""
    return not value.is_meta and bool((value == value[:1]).all())


def _is_row(bias: Any, count: int, behind: int) -> bool:
    """Whether a constant gives each channel one number, wherever it stands: `behind` axes are behind the channels."""
    shape = shape_of(bias)
    if shape is None:
        return False
    if behind:
        return len(shape) > behind and shape[-1 - behind] in (1, count) and bias.numel() == shape[-1 - behind]
    return bias.numel() == 1 or (bool(shape) and shape[-1] == count == bias.numel())


def _along(node: fx.Node, behind: int, rank: int | None) -> Refusal | None:
    """Whether the axis with `behind` axes behind it can be the channels of a layer."""
    if behind == 0 or rank == behind + 2:
        return None
    if rank is None:
        return Refusal(Code.RANK_UNKNOWN, "which axis a constant matrix meets is not known", (node.name,))
    return Refusal(Code.LAYOUT, "a product with a constant matrix along another axis than the channels", (node.name,))


def matmul(node: fx.Node, ctx: Context) -> Lifted:
    """``matmul``, ``mm`` and ``bmm`` of a value with a constant matrix on its right, or on its left."""
    given = arguments(node, ("input", "other"), {})
    if given is None:
        given = arguments(node, ("input", "mat2"), {})
    if given is None or len(given) != 2:
        return None
    left, right = given.values()
    return _product(node, left, right, ctx)


def _product(
    node: fx.Node, left: Any, right: Any, ctx: Context, bias: Any = None, factors: tuple[float, float] = (1.0, 1.0)
) -> Lifted:
    """``alpha * left @ right + beta * bias``, where one of both is a constant matrix."""
    matrix, value = (right, left) if varies(left) else (left, right)
    read = source_of(node, value, ctx)
    if read is None or not is_constant(matrix) or varies(matrix):
        return None
    axes = len(shape_of(ctx.constant(matrix)) or ()) if isinstance(matrix, fx.Node) else 0
    if axes > 2 and name_of(node) not in ("bmm", "baddbmm") and ctx.constant(matrix).shape[0] > 1:
        return None  # it would make a batch of one sample
    if axes > 2 and ctx.rank(read) != axes:
        return Refusal(Code.RANK_UNKNOWN, "a stack of matrices may add axes to the value it meets", (node.name,))
    if varies(left):
        return _times(node, left, right, ctx, bias=bias, factors=factors)
    if axes not in (2, 3):
        return None
    refusal = _along(node, 1, ctx.rank(read))
    return refusal or _times(node, right, left, ctx, behind=1, out_first=True, bias=bias, factors=factors)


def addmm(node: fx.Node, ctx: Context) -> Lifted:
    """``addmm`` and ``baddbmm`` of a constant for each channel, a value and a constant matrix, with their factors."""
    batch = ("batch1", "batch2") if name_of(node) == "baddbmm" else ("mat1", "mat2")
    given = arguments(node, ("input", *batch, "beta", "alpha"), {"beta": 1, "alpha": 1})
    if given is None or len(node.args) > 3 or len(given) != 5:
        return None
    bias, left, right, beta, alpha = (given[k] for k in ("input", *batch, "beta", "alpha"))
    if not is_number(beta) or not is_number(alpha) or not is_constant(bias):
        return None
    return _product(node, left, right, ctx, bias, (float(alpha), float(beta)))


def tensordot(node: fx.Node, ctx: Context) -> Lifted:
    """``tensordot`` of the last axis of a value with one of a constant matrix."""
    given = arguments(node, ("a", "b", "dims", "out"), {"dims": 2, "out": None})
    if given is None or given["out"] is not None or not varies(given.get("a")) or not is_constant(given.get("b")):
        return None
    read, dims = source_of(node, given["a"], ctx), given["dims"]
    if dims == 1 and type(dims) is int:
        return _times(node, given["a"], given["b"], ctx)
    if read is None or not isinstance(dims, (tuple, list)) or len(dims) != 2:
        return None
    ours, theirs = (list(d) if isinstance(d, (tuple, list)) else [d] for d in dims)
    if len(ours) != 1 or theirs not in ([0], [1], [-1], [-2]) or type(ours[0]) is not int:
        return None
    rank = ctx.rank(read)
    if ours[0] != -1 and rank is None:
        return Refusal(Code.RANK_UNKNOWN, "which axis a constant matrix meets is not known", (node.name,))
    if ours[0] != -1 and rank is not None and ours[0] % rank != rank - 1:
        return Refusal(Code.LAYOUT, "a product that also moves the axes", (node.name,))
    return _times(node, given["a"], given["b"], ctx, out_first=theirs[0] % 2 == 1)


def einsum(node: fx.Node, ctx: Context) -> Lifted:
    """``einsum`` of a value and a constant matrix or vector along the channels."""
    if node.kwargs or len(node.args) != 3 or type(node.args[0]) is not str:
        return None
    text = node.args[0].replace(" ", "").replace("...", ".")
    inputs, arrow, out = text.partition("->")
    parts = inputs.split(",")
    if not arrow or len(parts) != 2:
        return None
    (own, matrix), (value, constant) = parts, node.args[1:]
    if not varies(value):
        (own, matrix), (value, constant) = parts[::-1], (constant, value)
    read = source_of(node, value, ctx)
    if read is None or not is_constant(constant) or len({*own}) < len(own) or len({*matrix}) < len(matrix):
        return None
    shared = [c for c in matrix if c in own]
    if len(shared) != 1 or "." in matrix or own.count(".") > 1 or len(matrix) > 2:
        return None
    (channel,), new = shared, matrix.replace(shared[0], "")
    if out != own.replace(channel, new or channel):
        return None
    after = own.partition(channel)[2]
    rank = ctx.rank(read) if "." in own else len(own)
    if "." in after and rank is None:
        return Refusal(Code.RANK_UNKNOWN, "which axis a constant matrix meets is not known", (node.name,))
    behind = len(after) if "." not in after else (rank or 0) - 1 - own.index(channel)
    if not 0 <= behind <= MAX_AXES:
        return None
    if behind == 0 and "." not in own and len(own) != 2 and ctx.rank(read) != len(own):
        return Refusal(Code.RANK_UNKNOWN, f"{text!r} takes one rank alone, and the value's is not known", (node.name,))
    refusal = _along(node, behind, rank)
    if refusal is not None:
        return refusal
    if new:
        return _times(node, value, constant, ctx, behind=behind, out_first=matrix[0] == new)
    return channel_map(node, value, constant, ctx, lambda v: (v, None), False, behind)
