"""What each block says about the convolutions it can stand for: the table of `expand`.

A block is added by passing `expand` a function `conv -> module` or `(conv, norm | None) -> module` (the
second takes over the batch normalization behind the convolution), or an `Adapter`.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import (
    OREPA,
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    LargeKernelBlock,
    MobileOneBlock,
    RefConv,
    RepVGGBlock,
    parametrizations,
)
from reptool.blocks.orepa import SCALES
from reptool.errors import InputError

from .inherit import balance, inherit_norm
from .where import Conv

Branches = Literal["silent", "live"]


class Adapter(ABC):
    """How one block replaces convolutions; subclass it for blocks that the table does not know."""

    name: str = "block"
    takes_norm: bool = False
    """Whether the block has a norm of its own that takes over the one behind the convolution."""

    @abstractmethod
    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""

    @abstractmethod
    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block for `conv` (and `norm` behind it, if taken over), neither of which is changed."""

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """The norm whose statistics a calibration sets last, None if there is none."""
        return None

    def rebalance(self, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
        """Make `block` compute `conv` then `norm` again after its statistics have changed."""
        return


@dataclass(frozen=True)
class Branched(Adapter):
    """A block with `branches`, one of which (`main`) is a KxK convolution and a norm."""

    block: Callable[..., nn.Module]
    main: str
    preserve: bool = True
    branches: Branches = "silent"
    options: dict[str, Any] = field(default_factory=dict)
    takes_norm = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """The block's class."""
        return getattr(self.block, "__name__", "block")

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""
        if self.preserve and self.options.get("affine") is False:
            return "norms without weights cannot start as the convolution does"
        return _refused(self.block, conv, self.options)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its main branch with the kernel of `conv` and with `norm`."""
        block = _like(self.block(**arguments(self.block, conv), **self._options()), conv)
        kernel, own = self._main(block)
        _copy(kernel.weight, conv.weight)
        inherit_norm(own, conv, norm)
        _share_momentum(block, norm)
        if self.preserve and self.branches == "silent":
            _silence(block, self.main)
        self.rebalance(block, conv, norm)
        return block

    def rebalance(self, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
        """Subtract what the other branches compute from the main branch."""
        if self.preserve and self.branches == "live" and not conv.weight.is_meta:
            balance(block, *self._main(block), conv, norm)

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """The norm of the main branch."""
        return self._main(block)[1]

    def _main(self, block: nn.Module) -> tuple[Conv, _BatchNorm]:
        branch: Any = block.get_submodule(f"branches.{self.main}")
        return branch.conv, branch.bn

    def _options(self) -> dict[str, Any]:
        has_activation = "activation" in inspect.signature(self.block).parameters
        return {**({"activation": None} if has_activation else {}), **self.options}


@dataclass(frozen=True)
class Online(Adapter):
    """OREPA: one kernel made of several, and one norm."""

    preserve: bool = True
    branches: Branches = "silent"
    options: dict[str, Any] = field(default_factory=dict)
    name = "OREPA"
    takes_norm = True

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""
        return _refused(OREPA, conv, self.options)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its kernels summing up to that of `conv`."""
        block = _like(OREPA(**arguments(OREPA, conv), **self.options), conv)
        inherit_norm(block.bn, conv, norm)
        with torch.no_grad():
            if not self.preserve:
                _copy(block.conv.origin, conv.weight)
                return block
            for name, start in SCALES.items():
                silent = float(name == "origin")
                block.conv.scales[name].fill_(silent if self.branches == "silent" else start)
            if self.branches == "silent":
                _copy(block.conv.origin, conv.weight)
            else:
                change = (conv.weight.double() - block.conv.weight().double()) / SCALES["origin"]
                block.conv.origin.add_(change.to(block.conv.origin))
        return block

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """The only norm."""
        found: _BatchNorm = block.get_submodule("bn")  # type: ignore[assignment]
        return found


@dataclass(frozen=True)
class Refocusing(Adapter):
    """RefConv: the kernel becomes the frozen basis; the norm behind it stays."""

    preserve: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    name = "RefConv"

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the map does not fit."""
        return _attempt(lambda c: RefConv.from_conv(c, **self._options()), conv)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The RefConv of `conv`; its map starts as zero to preserve it, else as the paper's."""
        return RefConv.from_conv(conv, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"init": "zeros" if self.preserve else "xavier", **self.options}


@dataclass(frozen=True)
class WeightOnly(Adapter):
    """A function of `reptool.blocks.parametrizations`: the layer stays what it is, its weight is computed."""

    function: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function's name."""
        return getattr(self.function, "__name__", "parametrization")

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the parametrization does not fit."""
        return _attempt(lambda c: self.function(c, **self.options), conv)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """A copy of `conv` with the parametrization on its weight."""
        return self.function(copy.deepcopy(conv), **self.options)


@dataclass(frozen=True)
class Function(Adapter):
    """A function of the user's: `conv -> module`, or `(conv, norm | None) -> module`."""

    function: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_norm(self) -> bool:  # type: ignore[override]
        """Whether the function has a second positional parameter without a default."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        found = inspect.signature(self.function).parameters.values()
        return len([p for p in found if p.kind in kinds and p.default is p.empty]) > 1

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def can_replace(self, conv: Conv) -> str | None:
        """None, or what the function raised (an `InputError` refuses)."""
        return _attempt(lambda c: self.build(c, None), conv, meta=False)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """What the function makes of a copy of `conv`."""
        given = (copy.deepcopy(conv), copy.deepcopy(norm)) if self.takes_norm else (copy.deepcopy(conv),)
        made = self.function(*given, **self.options)
        if not isinstance(made, nn.Module):
            raise InputError(f"{self.name} returned a {type(made).__name__}, expected an nn.Module.")
        return made


MAIN: dict[Any, str] = {
    ACBlock: "square",
    RepVGGBlock: "dense",
    DiverseBranchBlock: "origin",
    MobileOneBlock: "conv0",
    LargeKernelBlock: "large",
    DilatedReparamBlock: "large",
}
"""Branched blocks, and the branch that inherits the kernel."""

FROM_CONV = (
    *("in_channels", "out_channels", "channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("bias", "padding_mode", "dim", "basis"),
)
"""Arguments that the convolution decides."""

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
        >>> adapter_for(ACBlock).can_replace(nn.Conv2d(4, 4, (1, 3)))
        'it has one number for all axes (the convolution has kernel_size=(1, 3))'
    """
    given = options or {}
    if branches not in ("silent", "live"):
        raise InputError(f"branches={branches!r} was given, expected 'silent' or 'live'.")
    if isinstance(block, Adapter):
        return block
    _check_options(block, given)
    if block is RefConv:
        return Refocusing(preserve, given)
    if block is OREPA:
        return Online(preserve, branches, given)
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


def arguments(block: Callable[..., nn.Module], conv: Conv) -> dict[str, Any]:
    """The constructor arguments with which `block` has the geometry of `conv`.

    Raises:
        InputError: the block has no such geometry.
    """
    takes = inspect.signature(block).parameters
    dim = len(conv.kernel_size)
    same = tuple(d * (k - 1) / 2 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    padding: Any = conv.padding
    if isinstance(padding, str):
        padding = same if padding == "same" else (0,) * dim
    wanted: dict[str, Any] = {
        "kernel_size": _plain(conv.kernel_size, takes),
        "stride": _plain(conv.stride, takes),
        "dilation": _plain(conv.dilation, takes),
        "padding": _plain(padding, takes),
        "padding_mode": conv.padding_mode,
        "dim": dim,
    }
    fixed = {"stride": 1, "dilation": 1, "padding": _plain(same, takes), "padding_mode": "zeros", "dim": 2}
    for name, value in wanted.items():
        if name not in takes and value not in (fixed[name], (fixed[name],) * dim):
            raise InputError(f"it has no {name} (the convolution has {name}={value})")
    if "channels" in takes:
        if not conv.in_channels == conv.out_channels == conv.groups:
            raise InputError("it is depthwise, the convolution is not")
        wanted["channels"] = conv.in_channels
    else:
        wanted.update(in_channels=conv.in_channels, out_channels=conv.out_channels, groups=conv.groups)
    return {name: value for name, value in wanted.items() if name in takes}


def _plain(sizes: tuple[Any, ...], takes: Any) -> Any:
    """One whole number where all axes agree."""
    if any(int(size) != size for size in sizes):
        raise InputError("an even kernel has no centre to pad around")
    whole = tuple(int(size) for size in sizes)
    return whole[0] if len(set(whole)) == 1 else whole


SCALAR = (ACBlock, DiverseBranchBlock, OREPA, LargeKernelBlock, DilatedReparamBlock)


def _refused(block: Callable[..., nn.Module], conv: Conv, options: dict[str, Any]) -> str | None:
    def build(like: Conv) -> nn.Module:
        given = arguments(block, like)
        uneven = {name: value for name, value in given.items() if isinstance(value, tuple)}
        if uneven and block in SCALAR:
            shown = ", ".join(f"{name}={value}" for name, value in uneven.items())
            raise InputError(f"it has one number for all axes (the convolution has {shown})")
        return block(**given, **options)

    return _attempt(build, conv)


def _attempt(build: Callable[[Conv], nn.Module], conv: Conv, meta: bool = True) -> str | None:
    """What `build` says against `conv`, asked on the meta device, where nothing is computed."""
    try:
        if meta:
            with torch.device("meta"):
                build(copy.deepcopy(conv).to("meta"))
        else:
            build(conv)
    except InputError as error:
        return str(error).rstrip(".")
    return None


def _like(block: Any, conv: Conv) -> Any:
    """`block` with device and dtype of `conv`."""
    return block.to(conv.weight.device, conv.weight.dtype)


@torch.no_grad()
def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _share_momentum(block: nn.Module, norm: _BatchNorm | None) -> None:
    for module in block.modules():
        if isinstance(module, _BatchNorm) and norm is not None:
            module.momentum = norm.momentum


@torch.no_grad()
def _silence(block: nn.Module, main: str) -> None:
    """Weight 0 for the last norm of every branch but `main`."""
    for name, branch in block.get_submodule("branches").named_children():
        if name != main:
            norm: Any = branch if isinstance(branch, _BatchNorm) else branch.get_submodule("bn")
            norm.weight.zero_()
