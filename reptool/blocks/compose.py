"""Composition: parallel branches added or concatenated.

With `nn.Sequential` this is enough to write every block of this folder, and new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce as fold
from operator import add
from typing import Literal

import torch
from torch import Tensor, nn

from ._checks import require


class Parallel(nn.ModuleDict):
    """Apply all branches to the same input and add or concatenate what they return.

    Args:
        branches: modules by name, or a sequence of modules (named "0", "1", ...); all take (N, C, ...).
        reduce: "sum" adds the outputs, which must have equal shapes; "concat" joins them along the channels.

    Raises:
        InputError: no branches, or an unknown `reduce`.

    Paper:
        The common form of Inception, ACNet, RepVGG and their successors.

    Example:
        >>> import torch
        >>> block = Parallel({"wide": nn.Conv2d(4, 8, 3, padding=1), "point": nn.Conv2d(4, 8, 1)})
        >>> block(torch.zeros(1, 4, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        branches: Mapping[str, nn.Module] | nn.ModuleDict | Iterable[nn.Module],
        reduce: Literal["sum", "concat"] = "sum",
    ) -> None:
        if isinstance(branches, Mapping | nn.ModuleDict):
            named = dict(branches.items())
        else:
            named = {str(i): branch for i, branch in enumerate(branches)}
        require(len(named) > 0, "Parallel with no branches", "at least one", "add a branch or use nn.Identity")
        require(
            reduce in ("sum", "concat"),
            f"Parallel with reduce={reduce!r}",
            '"sum" or "concat"',
            "choose one of these",
        )
        super().__init__(named)
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, ...) to the sum or concatenation of the branches."""
        outputs = [branch(x) for branch in self.values()]
        if self.reduce == "concat":
            return torch.cat(outputs, dim=1)
        y: Tensor = fold(add, outputs)
        return y

    def extra_repr(self) -> str:
        """Arguments that the children do not show."""
        return f"reduce={self.reduce!r}"
