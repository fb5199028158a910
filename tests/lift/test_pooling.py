"""Poolings as maps that keep constants: which ones may stand on either side of a pointwise layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.lift.pooling import averaged


def test_the_module_of_a_pooling() -> None:
    x = torch.randn(1, 2, 9, 8)
    made = averaged("AvgPool", 2, kernel_size=(3, 2), stride=(2, 1)).module()
    torch.testing.assert_close(made(x), nn.functional.avg_pool2d(x, (3, 2), (2, 1)))


@pytest.mark.parametrize(("pool", "moves"), [
    (nn.AvgPool2d(2), True), (nn.AvgPool2d((2, 1), (1, 2)), True), (nn.AvgPool2d(3, 2, 1), False),
    (nn.AvgPool2d(2, divisor_override=1), False), (nn.AvgPool2d(3, 2, 1, count_include_pad=False), False),
    (nn.AdaptiveAvgPool2d(1), True), (nn.AdaptiveAvgPool2d((None, 2)), True), (nn.AdaptiveMaxPool2d(1), False),
])  # fmt: skip
def test_which_cross_a_pointwise_layer(pool: Any, moves: bool) -> None:
    model = nn.Sequential(nn.Sigmoid(), nn.Conv2d(128, 64, 1), pool, nn.Sigmoid()).double().eval()
    x = torch.randn(2, 128, 16, 12, dtype=torch.float64)
    made = reptool.deploy(model, x)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model(x), rtol=1e-9, atol=1e-9)
    assert any("resample" in r.rules for r in reptool.report(made).regions) == moves
