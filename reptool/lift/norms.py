"""Batch norms with running statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.fusions.bn_conv import bn_kernel
from reptool.ir.computed_weights import exact_tensors
from reptool.lift.reading import Context, Lifted, affine, arguments, cone_of, shape_of, source_of
from reptool.refusal import Code, Refusal


def _norm(
    node: fx.Node, source: fx.Node | None, axes: tuple[Axis, ...] | None, channels: int, owners: tuple[str, ...],
    values: Callable[[], tuple[Tensor, Tensor, Tensor | None, Tensor | None]], eps: float, guard: int | None = None,
) -> Lifted:  # fmt: skip
    ch = Channels.grouped(channels, channels, channels)

    def load() -> Kernel:
        n = len(axes or ())
        mean, var, gamma, beta = values()
        weight, bias = bn_kernel(mean, var, gamma, beta, eps, (1,) * n)
        terms = mean.abs() * weight.reshape(channels).abs()
        terms = terms if beta is None else terms + beta.abs()
        return Kernel(ch, axes, weight.reshape(channels, 1, *[1] * n), bias, True, terms)

    shape = Kernel(ch, axes, biased=True)
    return affine(node, source, shape, load, owners=owners, paradigm="bn", cost=1, rank_guard=guard)


def _norm_axes(
    node: fx.Node, source: fx.Node | None, rank: int | None, ctx: Context
) -> tuple[tuple[Axis, ...], int | None] | Refusal:
    """Axes behind the channels of a norm that works on dimension 1 of its input, and a rank to guard."""
    if rank is None and source is not None:
        rank = ctx.rank(source)
        if rank is not None and ctx.behind(source) == 0 and ctx.stated(source) is None:
            return (Axis(),) * (rank - 2), rank  # known from the example inputs alone
    if rank is None and source is not None and ctx.behind(source) == 0:
        return (), 2  # behind a linear layer, right for [N, C] only: the deployed layer checks
    if rank is None:
        return Refusal(
            Code.RANK_UNKNOWN,
            "whether this norm sees [N, C] or [N, C, L] is not known; give example_inputs",
            (node.name,),
        )
    alone = rank == 3 and source is not None and ctx.behind(source) == 1  # its layer takes [C, L] as well
    return (Axis(),) * (rank - 2), rank if alone else None


def norm_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A batch norm of torch.nn in eval mode."""
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None or module.running_var is None:
        return Refusal(
            Code.NO_STATISTICS, "a batch norm without running statistics normalizes by its batch", (node.name,)
        )
    if module.training:
        return Refusal(Code.TRAINING_NORM, "a batch norm in training mode under a parent in eval mode", (node.name,))
    source = source_of(node, node.args[0], ctx)
    rank = 4 if isinstance(module, nn.BatchNorm2d) else 5 if isinstance(module, nn.BatchNorm3d) else None
    axes = _norm_axes(node, source, rank, ctx)
    if isinstance(axes, Refusal):
        return axes

    def values() -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return exact_tensors(module, "running_mean", "running_var", "weight", "bias")

    return _norm(node, source, axes[0], module.num_features, (str(node.target),), values, module.eps, axes[1])


def norm_function(node: fx.Node, ctx: Context) -> Lifted:
    """``batch_norm`` with running statistics: the function of `torch.nn.functional`, or of `torch`."""
    moments, scale = ("running_mean", "running_var"), ("weight", "bias")
    builtin = node.target is torch.batch_norm
    order = (*scale, *moments) if builtin else (*moments, *scale)
    names = ("input", *order, "training", "momentum", "eps", *(("cudnn_enabled",) if builtin else ()))
    given = arguments(node, names, {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5})
    if given is None:
        return None
    if given["training"] is not False:
        return Refusal(Code.TRAINING_NORM, "a batch norm that normalizes by its batch", (node.name,))
    tensors = [given[k] for k in ("running_mean", "running_var", "weight", "bias")]
    if tensors[0] is None or tensors[1] is None:
        return Refusal(
            Code.NO_STATISTICS, "a batch norm without running statistics normalizes by its batch", (node.name,)
        )
    if any(isinstance(t, fx.Node) and not t.meta["const"] for t in tensors) or type(given["eps"]) is not float:
        return Refusal(Code.DATA_WEIGHT, "the norm's parameters are computed from data", (node.name,))
    source = source_of(node, given["input"], ctx)
    axes = _norm_axes(node, source, None, ctx)
    if isinstance(axes, Refusal):
        return axes
    shape = shape_of(ctx.constant(tensors[0]))
    if shape is None:
        return None

    def values() -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return tuple(ctx.exact(t) if isinstance(t, fx.Node) else None for t in tensors)  # type: ignore[return-value]

    return _norm(node, source, axes[0], shape[0], cone_of(ctx, *tensors), values, given["eps"], axes[1])
