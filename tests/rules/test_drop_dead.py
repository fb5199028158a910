"""Channels that hold a constant or that nobody reads go, where the border stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool import Code
from reptool.rules import DropDeadChannels
from reptool.testing import assert_equivalent
from tests.rules.networks import deployed_by, images, random, rewritten


def pruned(between: Callable[[], nn.Module] = nn.ReLU, rows: int = 3, columns: int = 0, **second: Any) -> nn.Module:
    """Eight channels between two layers, some of which are zero or not read."""
    model: Any = random(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), between(), nn.Conv2d(8, 4, 3, **second)))
    with torch.no_grad():
        model[0].weight[:rows] = 0
        if columns:
            model[2].weight[:, -columns:] = 0
    return model  # type: ignore[no-any-return]


def widths(model: nn.Module) -> list[int]:
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


GOOD = {
    "unpadded": lambda: pruned(),
    "constants": lambda: pruned(nn.Sigmoid),
    "pooled": lambda: pruned(lambda: nn.Sequential(nn.SiLU(), nn.MaxPool2d(2))),
    "reflected": lambda: pruned(nn.Sigmoid, padding=1, padding_mode="reflect"),
    "columns": lambda: pruned(nn.Tanh, rows=0, columns=3, padding=1),
}


@pytest.mark.parametrize("case", sorted(GOOD))
def test_both_layers_become_narrower(case: str) -> None:
    model = GOOD[case]()
    deployed = deployed_by(model, DropDeadChannels(), images())
    assert rewritten(deployed) == 1
    assert widths(deployed) == [5, 4]
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)


def test_zeros_beyond_the_border_that_are_zeros_inside_change_nothing() -> None:
    model = pruned(padding=1)
    with torch.no_grad():
        model[0].bias[:3] = -1.0  # type: ignore[index]
    assert widths(deployed_by(model, DropDeadChannels(), images())) == [5, 4]


BAD: dict[str, tuple[Callable[[], nn.Module], Code]] = {
    "border": (lambda: pruned(nn.Sigmoid, padding=1), Code.BORDER_BIAS),
    "alive": (lambda: pruned(rows=0), Code.CHANNELS),
    "all dead": (lambda: pruned(rows=8), Code.CHANNELS),
    "groups": (lambda: pruned(groups=2), Code.CHANNELS),
    "mixed": (lambda: pruned(lambda: nn.Softmax(1)), Code.DISTRIBUTE),
    "along the batch": (lambda: pruned(lambda: nn.Softmax(0)), Code.DISTRIBUTE),
    "own slopes": (lambda: pruned(lambda: nn.PReLU(8)), Code.DISTRIBUTE),
    "average": (lambda: pruned(lambda: nn.Sequential(nn.Sigmoid(), nn.AvgPool2d(3, 1, 1))), Code.DISTRIBUTE),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_not_exact_is_left(case: str) -> None:
    build, code = BAD[case]
    model = build()
    deployed = deployed_by(model, DropDeadChannels(), images())
    assert rewritten(deployed) == 0
    assert code in {r.code for r in reptool.report(deployed).refusals}
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)
