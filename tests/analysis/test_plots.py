"""Pictures, where matplotlib is installed, and a clear error where it is not."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from reptool.analysis import channel_similarity, connection_degree, loss_landscape, plots, skeletons
from reptool.blocks import RefConv


def results() -> list[Any]:
    layer = RefConv(4, 4, 3, groups=4)
    data = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
    return [
        channel_similarity(layer.weight),
        connection_degree(layer),
        skeletons(layer),
        skeletons(RefConv(4, 4, 3, dim=1)),
        *(loss_landscape(nn.Linear(3, 2), data, nn.functional.cross_entropy, points=3, directions=n) for n in (1, 2)),
    ]


def test_drawing(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib").use("agg")
    for found in results():
        figure = plots.draw(found, "title")
        figure.savefig(tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 1000
        plots.pyplot().close(figure)
    with pytest.raises(TypeError, match="cannot be drawn"):
        plots.draw(3)  # type: ignore[arg-type]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        plots.draw(results()[0])
