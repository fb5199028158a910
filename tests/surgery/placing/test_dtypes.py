"""Regions with casts: what they read, give and compute with is of one dtype, or they are left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool


class Wide(nn.Module):
    """A narrow layer and a wide one; the sum is wide, unless it is cast back."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.narrow, self.wide, self.back = nn.Linear(6, 5).bfloat16(), nn.Linear(6, 5), back

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(x) + self.wide(x.float())
        return y.to(x.dtype) if self.back else y


@pytest.mark.parametrize("back", [False, True])
def test_a_value_of_another_dtype_than_the_layers_is_left(back: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Wide(back), nn.ReLU()).eval(), torch.randn(3, 6).bfloat16()
    deployed = reptool.deploy(model, x)
    report = reptool.report(deployed)
    assert report.layers[1] == (1 if back else 2)
    assert any(r.code.value == "dtype" and "torch.float32" in r.sentence for r in report.refusals) is not back
    wanted = model(x)
    assert deployed(x).dtype == wanted.dtype
    torch.testing.assert_close(deployed(x).float(), wanted.float(), rtol=0.05, atol=0.05)
