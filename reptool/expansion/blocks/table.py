"""What each block says about the convolutions it can stand for: the table of `expand`.

A block is added by passing `expand` a function `conv -> module` or `(conv, norm | None) -> module` (the
second takes over the batch normalization behind the convolution), or an `Adapter`.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from reptool.blocks import (
    OREPA,
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    EdgeOrientedBlock,
    LargeKernelBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RefConv,
    RepVGGBlock,
    parametrizations,
)
from reptool.errors import InputError
from reptool.expansion.blocks.adapter import Adapter, Branches
from reptool.expansion.blocks.geometry import FROM_CONV
from reptool.expansion.blocks.kinds import Branched, Function, Online, Refocusing, WeightOnly
from reptool.expansion.blocks.summed import EdgeOriented, Quantizable

MAIN: dict[Any, str] = {
    ACBlock: "square",
    RepVGGBlock: "dense",
    DiverseBranchBlock: "origin",
    MobileOneBlock: "conv0",
    LargeKernelBlock: "large",
    DilatedReparamBlock: "large",
}
"""Branched blocks, and the branch that inherits the kernel."""

EVERYWHERE = (
    "weight_norm",
    "centered_weight_norm",
    "orthogonal_weight_norm",
    "dirac_net",
    "weight_standardization",
)
"""Parametrizations that their papers put on pointwise convolutions too."""

CHANGING = ("centered_weight_norm", "orthogonal_weight_norm", "weight_standardization")
"""Parametrizations whose image does not hold every kernel: they cannot start from one that exists."""


def adapter_for(
    block: Any, *, preserve: bool = True, branches: Branches = "silent", options: dict[str, Any] | None = None
) -> Adapter:
    """The adapter of a block of reptool's, of a parametrization, or of a function of the user's.

    Args:
        block: class, function or `Adapter`.
        preserve: whether the block starts as what it replaces.
        branches: "silent" (further branches start as zero) or "live" (as their papers have them, subtracted
            from the main branch).
        options: keyword arguments of the block.

    Raises:
        InputError: an unknown block, or one that cannot preserve.

    Example:
        >>> from torch import nn
        >>> adapter_for(ACBlock).can_replace(nn.Conv2d(4, 4, (1, 3)))
        'it has one number for all axes (the convolution has kernel_size=(1, 3))'
    """
    given = options or {}
    if branches not in ("silent", "live"):
        raise InputError(f"branches={branches!r} was given, expected 'silent' or 'live'.")
    if isinstance(block, Adapter):
        return block
    if isinstance(block, nn.Module):
        name = type(block).__name__
        raise InputError(
            f"expand was given a {name} itself, one module for all convolutions; give the class {name} (what is to be "
            "set of it as options of expand), or a function conv -> module that makes one for each"
        )
    _check_options(block, given)
    if block is RefConv:
        return Refocusing(preserve, given)
    if block is OREPA:
        return Online(preserve, branches, given)
    if block is QARepVGGBlock:
        return Quantizable(preserve, branches, given)
    if block is EdgeOrientedBlock:
        return EdgeOriented(preserve, branches, given)
    if block in MAIN:
        return Branched(block, MAIN[block], preserve, branches, given)
    name = getattr(block, "__name__", "")
    if name in parametrizations.__all__ and getattr(parametrizations, name) is block and not isinstance(block, type):
        return _parametrization(block, name, preserve, given)
    if isinstance(block, type) or not callable(block):
        raise InputError(
            f"expand does not know how {getattr(block, '__name__', block)!r} inherits a kernel; pass a "
            "function conv -> module or (conv, norm) -> module, or an Adapter."
        )
    return Function(block, given)


def _check_options(block: Any, options: dict[str, Any]) -> None:
    """All `options` are arguments of `block` that do not come from the convolution."""
    if not callable(block):
        return
    takes = inspect.signature(block).parameters
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return
    unknown = [name for name in options if name not in takes or name in FROM_CONV]
    if unknown:
        free = [n for n, p in takes.items() if n not in FROM_CONV and p.default is not p.empty]
        raise InputError(
            f"{getattr(block, '__name__', block)} was given {', '.join(unknown)}; its options for expand are "
            f"{', '.join(free) or 'none'}."
        )


def _parametrization(block: Any, name: str, preserve: bool, options: dict[str, Any]) -> Adapter:
    if preserve and name in CHANGING:
        raise InputError(
            f"{name} cannot start from a kernel that exists (its rows lose their means); use preserve=False."
        )
    if name == "refconv":
        options = {"init": "zeros" if preserve else "xavier", **options}
    if name == "dirac_net":
        options = {"preserve": preserve, **options}
    return WeightOnly(block, options)
