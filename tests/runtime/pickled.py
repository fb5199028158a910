"""The models in the files beside this one, which were deployed and pickled by reptool 0.1.0 before its classes moved.

Their pickles name what they need of reptool: derived classes, methods, guards, kept originals, reports. All of it has
to be found under those names as long as anybody holds such a file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptool.blocks import DiverseBranchBlock, RepVGGBlock

torch.manual_seed(0)


class Flagged(nn.Module):
    """A sum of branches, written anew and guarded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        """A flag."""
        y = self.bn(self.a(x) + self.b(x))
        return y * 2 if double else torch.relu(y)


class Sized(nn.Module):
    """A sum of branches for large images alone: deployed with a fallback."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        if x.shape[2] >= 16:
            return torch.relu(self.bn(self.a(x) + self.b(x)))
        return torch.tanh(self.bn(self.a(x)))


def guarded() -> nn.Module:
    """Blocks, a flag, and a norm behind a layer that takes several ranks."""
    body = (RepVGGBlock(3, 4, stride=2), DiverseBranchBlock(4, 4), Flagged(), nn.Flatten(2))
    return nn.Sequential(*body, nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4)).eval()
