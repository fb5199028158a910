"""Identities: operations that return their input unchanged in eval mode."""

from __future__ import annotations

from torch import fx, nn

from reptool.ir.nodes import drops
from reptool.ir.ops import Pieces
from reptool.lift.reading import Context, Lifted, handed_on, source_of


def identity_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """``nn.Identity``."""
    return handed_on(node, node.args[0], ctx)


def dropout_module(node: fx.Node, module: nn.Module, ctx: Context) -> Lifted:
    """A dropout in eval mode, or one that drops nothing."""
    return None if module.training and getattr(module, "p", None) != 0 else handed_on(node, node.args[0], ctx)


def dropout_function(node: fx.Node, ctx: Context) -> Lifted:
    """A dropout of any kind that drops nothing, of `torch` or of `torch.nn.functional`."""
    if drops(node) is not False:
        return None
    return handed_on(node, node.args[0] if node.args else node.kwargs.get("input"), ctx)


def passthrough(node: fx.Node, ctx: Context) -> Lifted:
    """A function that gives its input back, in another memory at most."""
    source = source_of(node, node.args[0], ctx) if node.args and not node.kwargs else None
    if source is not None and isinstance(ctx.ops.get(source), Pieces):
        return Pieces(source)
    return handed_on(node, node.args[0] if node.args else None, ctx) if not node.kwargs else None
