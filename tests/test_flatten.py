"""`flatten=True`: what it cannot put into one graph is an error of ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import InputError
from tests.traps import ConvBN, assert_same, image, ready


class Loops(ConvBN):
    def forward(self, x: Any) -> Any:
        for _ in range(x.shape[0]):
            x = x + 1
        return self.bn(self.conv(x))


class Counts(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Any) -> Any:
        self.calls.append(1)
        return self.bn(self.conv(x)) * len(self.calls)


class Called(ConvBN):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) + 1


@pytest.mark.parametrize("model", [Loops, Counts, Called])
def test_what_one_graph_would_lose_is_named(model: type[nn.Module]) -> None:
    with pytest.raises(InputError, match="flatten"):
        reptool.deploy(ready(model()), flatten=True)


class Two(NamedTuple):
    a: Tensor
    b: Tensor


def test_a_named_tuple_is_returned_as_one() -> None:
    class Pair(ConvBN):
        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x))
            return Two(y, y.relu())

    model = ready(Pair())
    flat = reptool.deploy(model, flatten=True)
    assert_same(model(image()), flat(image()))


def test_a_norm_in_training_mode_stays_one() -> None:
    model = ready(ConvBN())
    model.bn.train()
    flat = reptool.deploy(model, flatten=True)
    with torch.no_grad():
        assert_same(model(image()), flat(image()))
