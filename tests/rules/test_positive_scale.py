"""A scale that is not negative moves in front of what is positively homogeneous, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import SpecializedError
from reptool.rules import PositiveScale
from reptool.testing import assert_equivalent
from tests.rules.networks import Scaled, deployed_by, images, random, rewritten


class SumOfSamples(nn.Module):
    """Positively homogeneous, and along the channels where there is no batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Each sample and those before it."""
        return x.cumsum(0)


FACTOR = torch.tensor([0.5, 2.0, 0.0, 3.0]).reshape(4, 1, 1)
BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.3),
    "prelu": lambda: nn.PReLU(4),
    "max pool": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "average": lambda: nn.Sequential(nn.ReLU(), nn.AvgPool2d(2, 2, 1), nn.Dropout()),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "softmax": lambda: nn.Softmax(1),
    "shrink": lambda: nn.Softshrink(1e-6),
    "instance": lambda: nn.InstanceNorm2d(4),
    "along the batch": lambda: SumOfSamples(),
}


@pytest.mark.parametrize("between", sorted(BETWEEN))
@pytest.mark.parametrize("factor", [FACTOR, 2.0], ids=["channels", "number"])
def test_the_layer_takes_it(between: str, factor: Tensor | float) -> None:
    model = random(lambda: Scaled(nn.Conv2d(3, 4, 3, padding=1), BETWEEN[between](), factor))
    deployed = deployed_by(model, PositiveScale(), images())
    assert rewritten(deployed) == 1
    assert "mul" not in deployed.code
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)


@pytest.mark.parametrize("between", sorted(OTHERS))
def test_what_is_not_homogeneous_keeps_it(between: str) -> None:
    model = random(lambda: Scaled(nn.Conv2d(3, 4, 3, padding=1), OTHERS[between](), FACTOR))
    deployed = deployed_by(model, PositiveScale(), images())
    assert rewritten(deployed) == 0
    assert [r.code for r in reptool.report(deployed).refusals if "positively homogeneous" in r.sentence] == [
        Code.DISTRIBUTE
    ]
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)


REFUSED: list[tuple[Any, Code, str]] = [
    (-FACTOR, Code.DISTRIBUTE, "negative"),
    (torch.rand(1, 1, 9), Code.BROADCAST, "varies"),
    (torch.rand(2, 4, 1, 1), Code.BROADCAST, "varies"),
]


@pytest.mark.parametrize(("factor", "code", "told"), REFUSED)
def test_other_factors_stay(factor: Any, code: Code, told: str) -> None:
    model = Scaled(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), factor).eval()
    deployed = deployed_by(model, PositiveScale(), images())
    assert rewritten(deployed) == 0
    assert [r for r in reptool.report(deployed).refusals if r.code is code and told in r.sentence]


def test_a_factor_with_a_batch_axis_holds_for_inputs_with_one() -> None:
    model = Scaled(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), FACTOR[None]).eval()
    deployed = deployed_by(model, PositiveScale(), images())
    assert rewritten(deployed) == 1
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)
    with pytest.raises(SpecializedError):
        deployed(images()[0])


def test_a_linear_layer_and_a_norm_in_front() -> None:
    model = random(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Scaled(nn.Identity(), nn.ReLU(), FACTOR.flatten()))
    )
    deployed = deployed_by(model, PositiveScale(), torch.randn(5, 3))
    assert rewritten(deployed) == 1
    assert [type(m) for m in deployed.children()].count(nn.Linear) == 1
    assert_equivalent(model, deployed, torch.randn(5, 3), dtype=None, rtol=1e-5)
