"""What `expand` asks of a block: whether it can stand for a convolution, and how it starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.expansion.where import Conv

Branches = Literal["silent", "live"]


class Adapter(ABC):
    """How one block replaces convolutions; subclass it for blocks that the table does not know."""

    name: str = "block"
    takes_norm: bool = False
    """Whether the block has a norm of its own that takes over the one behind the convolution."""
    has_bias: bool = False
    """Whether the block has a bias also where the convolution has none (with a norm of its own it does)."""
    keeps_class: bool = False
    """Whether the layer stays of its class, with a weight that is computed: then its class may have any forward."""

    @abstractmethod
    def can_replace(self, conv: Conv) -> str | None:
        """None, or why the block cannot stand for `conv`."""

    @abstractmethod
    def build(self, conv: Conv, norm: _BatchNorm | None) -> nn.Module:
        """The block for `conv` (and `norm` behind it, if taken over), neither of which is changed."""

    def main_norm(self, block: nn.Module) -> _BatchNorm | None:
        """The norm whose statistics a calibration sets last, None if there is none."""
        return None

    def inner_norms(self, block: nn.Module) -> tuple[_BatchNorm, ...]:
        """Norms in front of the main one that keep computing what they do when their statistics are measured."""
        return ()

    def rebalance(self, block: nn.Module, conv: Conv, norm: _BatchNorm | None) -> None:
        """Make `block` compute `conv` then `norm` again after its statistics have changed."""
        return
