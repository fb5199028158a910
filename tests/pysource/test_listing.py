"""Code that gets at all tensors below a module at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from reptool.pysource.listing import lists_tensors
from tests.traps import ConvBN, check, codes, norms, ready


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.twin = ConvBN(), ConvBN()

    def forward(self, x: Any) -> Any:
        return self.block(x).relu() * sum(p.square().sum() for p in self.parameters())


class ReadsState(Sums):
    def forward(self, x: Any) -> Any:
        return self.block(x) + self.state_dict()["block.bn.running_mean"].sum()


class Momentum(Sums):
    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            for p, q in zip(self.block.parameters(), self.twin.parameters(), strict=True):
                q.data = q.data * 0.5 + p.data * 0.5
        return self.block(x) + self.twin(x)


class AsksDevice(Sums):
    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: Any) -> Any:
        return self.block(x.to(self.device, next(self.parameters()).dtype)) + self.twin(x)


class AsksAll(AsksDevice):
    """The first of what a comprehension finds, as transformers asks for a dtype."""

    @property
    def device(self) -> torch.device:
        return next(p.device for p in self.parameters() if p.is_floating_point())


class FirstSum(Sums):
    def forward(self, x: Any) -> Any:
        return self.block(x) + next(p.sum() for p in self.parameters()) + self.twin(x)


@pytest.mark.parametrize("model", [Sums, ReadsState, Momentum])
def test_weights_that_are_listed_stay(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 2
    assert codes(report) & {"shared", "untraceable"}


def test_asking_for_a_device_is_no_reading() -> None:
    for model in (AsksDevice, AsksAll):
        deployed, _ = check(ready(model()))
        assert norms(deployed) == 0
    assert not lists_tensors(AsksDevice.forward)
    assert lists_tensors(Momentum.forward)


def test_the_first_value_of_a_comprehension_is_a_reading() -> None:
    check(ready(FirstSum()))
    assert lists_tensors(FirstSum.forward)
    assert not lists_tensors(AsksAll.device.fget)
