"""Activations and poolings that are the identity by the values they hold, against the model itself."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reptool
from reptool.testing import randomize


def prelu(*weights: float) -> nn.PReLU:
    """A PReLU with these slopes."""
    module = nn.PReLU(len(weights))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights))
    return module


class Written(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(x)


def layers(between: nn.Module) -> tuple[int, float]:
    """Layers of two pointwise convolutions with something between them once they are deployed, and the error."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1), between, nn.Conv2d(6, 5, 1)).double().eval()
    for conv in (model[0], model[2]):
        randomize(conv)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    with torch.no_grad():
        return reptool.report(deployed).layers[1], float((deployed(x) - model(x)).abs().max())


UNCHANGED: dict[str, Callable[[], nn.Module]] = {
    "leaky relu": lambda: nn.LeakyReLU(1.0),
    "leaky relu in place": lambda: nn.LeakyReLU(1, inplace=True),
    "prelu": lambda: prelu(1.0),
    "prelu of each channel": lambda: prelu(*[1.0] * 6),
    "rrelu": lambda: nn.RReLU(0.5, 1.5),
    "hardtanh": lambda: nn.Hardtanh(-inf, inf),
    "threshold": lambda: nn.Threshold(-inf, 3.0),
    "hardshrink": lambda: nn.Hardshrink(0.0),
    "softshrink": lambda: nn.Softshrink(0.0),
    "dropout that drops nothing": lambda: nn.Dropout(0.0).train(),
    "max pooling of one": lambda: nn.MaxPool2d(1),
    "upsampling by one": lambda: nn.Upsample(scale_factor=1, mode="bilinear"),
    "written leaky relu": lambda: Written(lambda x: F.leaky_relu(x, 1)),
    "written in place": lambda: Written(lambda x: F.leaky_relu_(x, 1.0)),
    "written prelu": lambda: Written(lambda x: F.prelu(x, torch.ones(6).to(x))),
    "clamp": lambda: Written(lambda x: x.clamp(min=-inf)),
    "clip": lambda: Written(lambda x: torch.clip(x, -inf, inf)),
    "power": lambda: Written(lambda x: x**1),
    "written power": lambda: Written(lambda x: torch.pow(x, exponent=1.0)),
    "times one and zero": lambda: Written(lambda x: x * 1 + 0),
    "written max pooling": lambda: Written(lambda x: F.max_pool2d(x, (1, 1), stride=1)),
    "interpolation by one": lambda: Written(lambda x: F.interpolate(x, scale_factor=(1.0, 1.0))),
}
CHANGED: dict[str, Callable[[], nn.Module]] = {
    "leaky relu": lambda: nn.LeakyReLU(0.999),
    "minus one": lambda: nn.LeakyReLU(-1.0),
    "one slope of six": lambda: prelu(1.0, 1.0, 1.0, 1.0, 1.0, 0.5),
    "almost one": lambda: prelu(1.0 + 1e-6),
    "rrelu": lambda: nn.RReLU(0.5, 1.0),
    "rrelu that draws": lambda: Written(lambda x: F.leaky_relu(x, 0.5) + 0.0),
    "hardtanh": lambda: nn.Hardtanh(-inf, 0.5),
    "relu6": nn.ReLU6,
    "threshold": lambda: nn.Threshold(-0.1, 0.0),
    "softshrink": lambda: nn.Softshrink(0.1),
    "elu": nn.ELU,
    "celu": lambda: nn.CELU(1.0),
    "clamp": lambda: Written(lambda x: x.clamp(min=-inf, max=0.25)),
    "power": lambda: Written(lambda x: x**2),
    "of another base": lambda: Written(lambda x: 1.5**x),
    "max pooling with a step": lambda: nn.MaxPool2d(1, stride=2),
    "max pooling with a border": lambda: Written(lambda x: F.max_pool2d(x, 2, stride=1)),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_changes_nothing_is_no_obstacle(name: str) -> None:
    count, error = layers(UNCHANGED[name]())
    assert count == 1
    assert error < 1e-12


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_anything_stays(name: str) -> None:
    count, error = layers(CHANGED[name]())
    assert count == 2
    assert error < 1e-12


def test_a_slope_computed_from_data_stays() -> None:
    count, error = layers(Written(lambda x: F.prelu(x, (x * 0 + 1).mean().reshape(1))))
    assert count == 2
    assert error < 1e-12


def test_bounds_that_add_axes_stay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("low", torch.full((2, 1, 1, 1, 1), -inf))

        def forward(self, x: Tensor) -> Any:
            return self.conv(x).clamp(min=self.low) * 2.0

    model, x = randomize(Model()).eval(), torch.randn(1, 3, 5, 4)
    torch.testing.assert_close(reptool.deploy(model, x)(x), model(x))


@settings(max_examples=40, deadline=None)
@given(slope=st.sampled_from([1.0, 1, 0.0, -1.0, 1.0 + 2**-52, 0.5]), last=st.sampled_from([1.0, 1.0, 0.25]))
def test_slopes_decide(slope: float, last: float) -> None:
    between = nn.Sequential(nn.LeakyReLU(slope), prelu(*[1.0] * 5, last))
    count, error = layers(between)
    assert count == (1 if slope == 1 and last == 1 else 2)
    assert error < 1e-12
