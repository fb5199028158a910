"""One small classifier around every block, for tests that train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
    RepMixer,
    RepNeXtBlock,
    RepNeXtUnit,
    RepVGGBlock,
    parametrizations,
)

CHANNELS = 8


def _conv() -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "refconv": lambda: RefConv(CHANNELS, CHANNELS, 3, padding=1, groups=2),
    "refconv-trained-basis": lambda: RefConv(CHANNELS, CHANNELS, 3, padding=1, train_basis=True),
    "acb": lambda: ACBlock(CHANNELS, CHANNELS),
    "repvgg": lambda: RepVGGBlock(CHANNELS, CHANNELS),
    "dbb": lambda: DiverseBranchBlock(CHANNELS, CHANNELS),
    "mobileone": lambda: MobileOneBlock(CHANNELS, CHANNELS, conv_branches=2),
    "orepa": lambda: OREPA(CHANNELS, CHANNELS),
    "qarepvgg": lambda: QARepVGGBlock(CHANNELS, CHANNELS),
    "large": lambda: LargeKernelBlock(CHANNELS, CHANNELS, 7, groups=CHANNELS),
    "dilated": lambda: DilatedReparamBlock(CHANNELS, 7),
    "edge": lambda: EdgeOrientedBlock(CHANNELS, CHANNELS),
    "repmixer": lambda: RepMixer(CHANNELS),
    "repnext-unit": lambda: RepNeXtUnit(CHANNELS),
    "repnext-block": lambda: RepNeXtBlock(CHANNELS),
    "param-refconv": lambda: parametrizations.refconv(_conv()),
    "weight-norm": lambda: parametrizations.weight_norm(_conv()),
    "centered-weight-norm": lambda: parametrizations.centered_weight_norm(_conv()),
    "orthogonal-weight-norm": lambda: parametrizations.orthogonal_weight_norm(_conv()),
    "dirac": lambda: parametrizations.dirac_net(_conv()),
    "weight-standardization": lambda: parametrizations.weight_standardization(_conv()),
}


def classifier(block: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Stem, block, pooling and a linear layer; always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1),
        BLOCKS[block](),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 3),
    ).to(dtype)


def batch(step: int, rank: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """What `rank` sees in `step`."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(4, 2, 9, 9, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randint(0, 3, (4,), generator=generator)


def loss_of(model: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of a batch."""
    return nn.functional.cross_entropy(model(data[0]).double(), data[1])


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum and weight decay for whatever trains."""
    trained: Any = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.05, momentum=0.9, weight_decay=1e-3)
