"""Both models are timed with the same inputs."""

from __future__ import annotations

from io import StringIO

import torch
from rich.console import Console
from torch import nn

from reptool.cli.timed import Timed, bench


def test_a_model_is_timed_before_and_after() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    found = bench(model, (torch.randn(1, 3, 8, 8),), 0.05, 1)
    assert min(found.milliseconds) > 0
    assert found.parameters == (120, 112)
    assert found.multiplications is not None
    assert bench(model, {"input": torch.randn(1, 3, 8, 8)}, 0.05, 1).threads == 1


def test_the_table_has_ratios_and_says_what_is_not_known() -> None:
    console = Console(width=100, record=True, file=StringIO())
    console.print(Timed((2.0, 1.0), (100, 50), (1000, None), 2).table())
    text = console.export_text()
    assert "2 threads" in text
    assert "0.50" in text
    assert "?" in text
