"""The check of a layer that was fused for inputs of one rank, because a norm behind it would mean another axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from reptool.errors import SpecializedError


@dataclass
class RankGuard:
    """A forward pre-hook: the layer was fused for inputs of one rank."""

    rank: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Raise for another rank."""
        if args and args[0].dim() != self.rank:
            raise SpecializedError(
                f"this layer was fused for inputs of {self.rank} dimensions and got {args[0].dim()}; "
                "deploy with example_inputs of that rank, or exclude it"
            )


def guarded_rank(module: nn.Module) -> int | None:
    """The rank a module is guarded for, None where any is right."""
    return next((h.rank for h in module._forward_pre_hooks.values() if isinstance(h, RankGuard)), None)


def set_guard(module: nn.Module, rank: int) -> None:
    """Guard a module for inputs of one rank, once."""
    if guarded_rank(module) is None:
        module.register_forward_pre_hook(RankGuard(rank))
