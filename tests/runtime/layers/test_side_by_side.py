"""Values of several resolutions: handed on where upsampled they would fit, and summed by a layer for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from reptool.errors import SpecializedError
from reptool.runtime.layers.side_by_side import SideBySide, side_by_side

LOW, HIGH = torch.zeros(1, 4, 3, 5), torch.zeros(1, 2, 6, 10)


@pytest.mark.parametrize("size", [None, (6, 10), [6, 10], torch.Size((6, 10))])
def test_values_that_fit_are_handed_on(size: Any) -> None:
    got = side_by_side((LOW, HIGH), ((2, 2), (1, 1)), (size, None))
    assert got[0] is LOW
    assert got[1] is HIGH
    assert side_by_side((torch.zeros(1, 4, 3, 3),), ((2, 2),), (6,))[0].shape[1] == 4


@pytest.mark.parametrize(("values", "factors", "sizes"), [
    ((LOW, HIGH), ((2, 2), (1, 1)), ((6, 11), None)),
    ((LOW, HIGH), ((2, 2), (1, 1)), ((12,), None)),
    ((LOW, HIGH), ((2, 1), (1, 1)), (None, None)),
    ((LOW[0], HIGH), ((2, 2), (1, 1)), (None, None)),
    ((LOW, HIGH.expand(2, -1, -1, -1)), ((2, 2), (1, 1)), (None, None)),
    ((torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1)), ((2, 2), (1, 1)), ((1, 1), None)),
])  # fmt: skip
def test_others_raise(values: Any, factors: Any, sizes: Any) -> None:
    with pytest.raises(SpecializedError, match="deploy"):
        side_by_side(values, factors, sizes)


def test_the_layer_adds_up_what_its_parts_give() -> None:
    high = nn.Conv2d(4, 8, 3, padding=1)
    layer = SideBySide([nn.ConvTranspose2d(4, 8, 4, 2, 1), high], [(0,), (1, 2)])
    got = layer((LOW, HIGH, HIGH + 1))
    wanted = layer.parts[0](LOW) + high(torch.cat([HIGH, HIGH + 1], 1))
    torch.testing.assert_close(got, wanted)


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SideBySide([nn.ConvTranspose2d(4, 8, 4, 2, 1), nn.Conv2d(2, 8, 3, padding=1)], [(0,), (1,)])

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(side_by_side((low, high), ((2, 2), (1, 1)), (high.shape[2:], None)))
        return out


def test_a_graph_checks_as_well() -> None:
    model = Both()
    graph = fx.symbolic_trace(model)
    torch.testing.assert_close(graph(LOW, HIGH), model(LOW, HIGH))
    with pytest.raises(SpecializedError):
        graph(LOW, HIGH[..., 1:])
