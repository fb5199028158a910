"""Blocks whose branches are added without a norm of their own behind each: QARepVGG and the edge-oriented block.

QARepVGG is BN(BN(W * x) + P * x + x). Its outer norm takes over the one behind the convolution, its inner one
starts as one that does nothing, and the dense kernel is what the other branches leave of the convolution's.
An edge-oriented block has no norm at all, so that the one behind the convolution stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import EdgeOrientedBlock, QARepVGGBlock
from reptool.blocks.edge_oriented import FILTERS
from reptool.expansion.blocks.adapter import Adapter, Branches
from reptool.expansion.blocks.geometry import arguments, fresh, like, refused
from reptool.expansion.inherit import balance, collapsed, folded, inherit_norm
from reptool.expansion.where import Conv


@dataclass(frozen=True)
class Quantizable(Adapter):
    """QARepVGG: the outer norm is inherited, the dense branch makes up for the others."""

    preserve: bool = True
    branches: Branches = "silent"
    options: dict[str, Any] = field(default_factory=dict)
    block: Callable[..., nn.Module] = QARepVGGBlock
    name = "QARepVGGBlock"
    takes_norm = True

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""
        return refused(self.block, conv, fresh(self.options))

    @torch.no_grad()
    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its outer norm as `norm` and its branches adding up to `conv`."""
        block: Any = like(
            self.block(**arguments(self.block, conv), **{"activation": None, **fresh(self.options)}), conv
        )
        dense = block.branches.dense
        dense.conv.weight.copy_(conv.weight)
        inherit_norm(block.bn, conv, norm)
        dense.bn.momentum = block.bn.momentum
        if self.preserve:
            dense.bn.running_var.fill_(1 - dense.bn.eps)
            if self.branches == "silent" and hasattr(block.branches, "point"):
                block.branches.point.conv.weight.zero_()
            self.rebalance(block, conv, norm)
        return block

    def rebalance(self, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
        """Subtract what the other branches compute from the dense one."""
        if not self.preserve or conv.weight.is_meta:
            return
        plain, dense = copy.deepcopy(conv), block.get_submodule("branches.dense")
        plain.bias = None  # the outer norm has it
        found: Any = dense
        balance(block.get_submodule("branches"), found.conv, found.bn, plain, None)

    def inner_norms(self, block: nn.Module) -> tuple[_BatchNorm, ...]:
        """The norm of the dense branch."""
        found: Any = block.get_submodule("branches.dense.bn")
        return (found,)

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """The norm behind the sum."""
        found: Any = block.get_submodule("bn")
        return found


@dataclass(frozen=True)
class EdgeOriented(Adapter):
    """ECB: the dense branch takes the kernel, the filters start with scale zero or are subtracted."""

    preserve: bool = True
    branches: Branches = "silent"
    options: dict[str, Any] = field(default_factory=dict)
    name = "EdgeOrientedBlock"
    has_bias = True

    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""
        return refused(EdgeOrientedBlock, conv, fresh(self.options))

    @torch.no_grad()
    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block, its branches adding up to `conv`."""
        block = like(EdgeOrientedBlock(**arguments(EdgeOrientedBlock, conv), **fresh(self.options)), conv)
        main = block.branches.dense
        main.weight.copy_(conv.weight)
        main.bias.zero_() if conv.bias is None else main.bias.copy_(conv.bias)
        if self.preserve and self.branches == "silent":
            for layer in (block.branches.expand[1], *(block.branches[name][1] for name in FILTERS)):
                for value in (getattr(layer, "scale", None), getattr(layer, "weight", None), layer.bias):
                    if value is not None:
                        value.zero_()
        if self.preserve and not conv.weight.is_meta:
            weight, bias = folded(conv, None)
            found, offset = collapsed(block)
            main.weight.copy_(main.weight.double() + weight - found)
            main.bias.copy_(main.bias.double() + bias - offset)
        return block
