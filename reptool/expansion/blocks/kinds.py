"""The kinds of blocks: with branches, online, refocusing, a parametrized weight, a user's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import OREPA, RefConv
from reptool.blocks.orepa import SCALES
from reptool.errors import InputError
from reptool.expansion.blocks.adapter import Adapter, Branches
from reptool.expansion.blocks.geometry import arguments, asks_the_user, attempt, fresh, like, refused
from reptool.expansion.inherit import balance, inherit_norm
from reptool.expansion.where import Conv
from reptool.models.copies import full_copy


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
        return refused(self.block, conv, fresh(self.options))

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its main branch with the kernel of `conv` and with `norm`."""
        block = like(self.block(**arguments(self.block, conv), **self._options()), conv)
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
        return {**({"activation": None} if has_activation else {}), **fresh(self.options)}


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
        return refused(OREPA, conv, fresh(self.options))

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its kernels summing up to that of `conv`."""
        block = like(OREPA(**arguments(OREPA, conv), **fresh(self.options)), conv)
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
        return attempt(self._tried, conv, meta=not asks_the_user(self.options))

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The RefConv of `conv`; its map starts as zero to preserve it, else as the paper's."""
        return RefConv.from_conv(conv, **self._options())

    def _tried(self, conv: Conv) -> nn.Module:
        block = RefConv.from_conv(conv, **self._options())
        if asks_the_user(self.options):
            check_map(block)
        return block

    def _options(self) -> dict[str, Any]:
        return fresh({"init": "zeros" if self.preserve else "xavier", **self.options})


@torch.no_grad()
def check_map(block: RefConv) -> None:
    """Raise for a map of the user's that does not take and give (1, N, *K)."""
    basis = block.weight.flatten(0, 1).unsqueeze(0)
    try:
        mapped: Any = block.convmap(basis)
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"its transform does not take {tuple(basis.shape)} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(mapped, torch.Tensor) or mapped.shape != basis.shape:
        made = tuple(mapped.shape) if isinstance(mapped, torch.Tensor) else type(mapped).__name__
        raise InputError(f"its transform makes {made} of {tuple(basis.shape)}, and has to keep the shape")


@dataclass(frozen=True)
class WeightOnly(Adapter):
    """A function of `reptool.blocks.parametrizations`: the layer stays what it is, its weight is computed."""

    function: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    keeps_class = True

    @property
    def name(self) -> str:  # type: ignore[override]
        """The function's name."""
        return getattr(self.function, "__name__", "parametrization")

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the parametrization does not fit."""
        return attempt(lambda c: self.function(c, **fresh(self.options)), conv, meta=not asks_the_user(self.options))

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """A copy of `conv` with the parametrization on its weight."""
        return self.function(full_copy(conv), **fresh(self.options))


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
        return attempt(lambda c: self.build(c, None), conv, meta=False)

    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """What the function makes of a copy of `conv`."""
        given = (full_copy(conv), norm if norm is None else full_copy(norm)) if self.takes_norm else (full_copy(conv),)
        made = self.function(*given, **fresh(self.options))
        if not isinstance(made, nn.Module):
            raise InputError(f"{self.name} returned a {type(made).__name__}, expected an nn.Module.")
        return made


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
