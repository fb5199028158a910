"""What verification finds: wrong weights, borders, strides and casts, planted by the thousand."""

from random import Random
from typing import Literal

import pytest
import torch

from reptool.verify.measure import cast_error, largest
from reptool.verify.regions import EXACT, checked_unit, tolerance
from tests.verify.planted import planned, wrong

FOUND_FAST = 0.998
"""The least share of wrong kernels that one size alone has to show."""


def found(mode: Literal["full", "fast"], seed: int, count: int) -> tuple[int, list[str]]:
    missed = []
    for unit, site, how in wrong(seed, count):
        _, failed = checked_unit(unit, mode)
        if not failed:
            missed.append(f"{how} {site.shape}")
    return count - len(missed), missed


@pytest.mark.parametrize("seed", range(4))
def test_every_wrong_kernel_is_found(seed: int) -> None:
    assert found("full", seed, 50) == (50, [])


@pytest.mark.slow
def test_of_two_thousand_wrong_kernels_full_finds_all_and_fast_nearly_all() -> None:
    assert found("full", 100, 2000) == (2000, [])
    count, missed = found("fast", 100, 2000)
    assert count >= FOUND_FAST * 2000, missed


def test_right_kernels_are_found_right_far_below_the_bound() -> None:
    random = Random(7)
    torch.manual_seed(7)
    for _ in range(60):
        unit, site = planned(random)
        checked, failed = checked_unit(unit, "full")
        assert not failed
        measured = checked[site][0]
        assert measured is not None
        assert measured.exact < EXACT / 1e3
        assert measured.cast < torch.finfo(torch.float32).eps < tolerance(torch.float32)
        assert measured.sizes >= max(site.shape.stride, default=1)
        (fast, *_) = checked_unit(unit, "fast")[0][site]
        assert fast is not None
        assert fast.sizes == 1


@pytest.mark.parametrize("off", [1e-2, 1e-4, 2e-5])
def test_one_number_that_the_cast_changed_is_found(off: float) -> None:
    random = Random(3)
    for _ in range(20):
        unit, site = planned(random)
        assert site.cast is not None
        weight = site.cast[0].clone()
        weight.view(-1)[random.randrange(weight.numel())] += off * float(weight.abs().max())
        site.cast = (weight, site.cast[1])
        failed = checked_unit(unit, "fast")[1]
        assert "after the cast" in str(failed.refusals()[0])


def test_nothing_is_found_where_nothing_is_checked() -> None:
    for unit, _, _ in wrong(0, 5):
        assert not checked_unit(unit, False)[1]


def test_the_largest_of_what_holds_nan_is_nan() -> None:
    assert largest(torch.tensor([1.0, -3.0])) == 3
    assert largest(torch.zeros(0)) == 0
    assert largest(torch.tensor([1.0, float("nan"), 2.0])) != largest(torch.ones(1))


def test_the_error_of_a_cast_is_relative_to_the_largest_number_and_to_the_least_step() -> None:
    exact = torch.tensor([[1.0, 2.0], [4.0, 0.5]], dtype=torch.float64)
    cast = exact.float()
    assert cast_error(exact, cast) == 0
    cast[1, 1] += 0.25
    assert cast_error(exact, cast) == pytest.approx(0.0625)
    tiny = torch.full((3,), 2e-8, dtype=torch.float64)
    assert cast_error(tiny, tiny.half()) == 0  # float16 has no such number, and the original had none either
    assert cast_error(tiny, tiny.half() + 1e-3) > 1
    assert cast_error(torch.zeros(0).double(), torch.zeros(0)) == 0
