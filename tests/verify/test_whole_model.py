"""What counts as a difference of two outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import VerificationError
from reptool.report.data import Report
from reptool.verify.whole_model import compare_whole, difference, movement, whole_error
from tests.traps import Branches, image, ready

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("found", "wanted", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 3.0], [1.0, 4.0], 0.25),
        ([INF, -INF, 1.0], [INF, -INF, 2.0], 0.5),
        ([NAN, 1.0], [NAN, 1.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_equal_infinities_and_nan_in_the_same_places_are_the_same(
    found: list[float], wanted: list[float], error: float
) -> None:
    assert difference(torch.tensor(found), torch.tensor(wanted)) == pytest.approx(error)


@pytest.mark.parametrize(("found", "wanted"), [([NAN], [1.0]), ([1.0], [NAN]), ([INF], [-INF]), ([INF], [1.0])])
def test_others_are_not(found: list[float], wanted: list[float]) -> None:
    assert not difference(torch.tensor(found), torch.tensor(wanted)) <= 1.0
    assert not whole_error([torch.tensor(found)], [torch.tensor(wanted)]) <= 1.0


def test_other_structures_are_infinitely_far() -> None:
    assert whole_error(torch.ones(2), torch.ones(3)) == INF
    assert whole_error([torch.ones(2)], [torch.ones(2), torch.ones(1)]) == INF


class Finished(Branches):
    """Branches, and an output with infinities or NaN in it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.a(x) + self.b(x))
        masked = y.masked_fill(x[:, :1] > 0, -INF)
        return {"mask": lambda: masked, "softmax": lambda: masked.softmax(1), "log": lambda: y.log()}[self.how]()


@pytest.mark.parametrize("how", ["mask", "softmax", "log"])
def test_models_whose_outputs_hold_them_deploy(how: str) -> None:
    model, x = ready(Finished(how)), image()
    for shown in (None, x):
        deployed = reptool.deploy(model, shown)
        assert len(reptool.report(deployed).regions) == 1
        assert difference(deployed(x), model(x)) < 1e-9


@pytest.mark.parametrize("size", [1e8, 1e20])
def test_statistics_that_cancel_are_no_fault(size: float) -> None:
    model, x = Branches().eval(), image().float()
    with torch.no_grad():
        model.a[1].running_mean.fill_(size)  # type: ignore[union-attr, operator]
        model.b[1].running_mean.fill_(-size)  # type: ignore[union-attr, operator]
    deployed = reptool.deploy(model, x)
    assert reptool.report(deployed).norms == (3, 0)


def test_movement_is_small_for_what_is_well_conditioned() -> None:
    model, x = ready(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())), image()
    exact = model(x)
    assert 0 < movement(model, (x,), {}, exact) < 1e-13


def test_a_model_that_raises_only_once_it_is_deployed_is_an_error_with_its_sentence() -> None:
    class Torn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("sizes 10 and 20 do not fit")

    reference: Any = SimpleNamespace(own=torch.zeros(1), exact=None, multiplications=None)
    with pytest.raises(VerificationError, match=r"raises RuntimeError on example_inputs.*sizes 10 and 20"):
        compare_whole(Torn(), (torch.zeros(1),), {}, reference, Report("Torn"))
