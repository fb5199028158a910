"""What a wrong place of a norm's scale and shift is answered with: the norm keeps them, and the model stays right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.algebra.kernel import Kernel
from reptool.errors import RegionWarning
from reptool.passages import norm_affine as own_affine
from reptool.passages import own_affines
from reptool.testing import randomize
from reptool.verify import bare, regions
from tests.passages.test_own_affines import TAKEN, TOKENS


def turned(function: Callable[..., Kernel]) -> Callable[..., Kernel]:
    """A function that gives the channels in another order."""

    def made(*args: Any) -> Kernel:
        kernel = function(*args)
        weight = None if kernel.weight is None else kernel.weight.flip(0)
        return Kernel(kernel.channels, kernel.axes, weight, kernel.bias, kernel.biased)

    return made


@pytest.mark.parametrize(("case", "law"), [("axes moved", "_along"), ("halves", "_rows")])
@pytest.mark.parametrize("given", [False, True])
def test_a_wrong_law_of_moving_is_found(case: str, law: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape = TAKEN[case]
    model, x = randomize(build(), 1).eval(), torch.randn(shape)
    monkeypatch.setattr(own_affines, law, turned(getattr(own_affines, law)))
    with pytest.warns(RegionWarning, match="scale and shift"):
        deployed = reptool.deploy(model, x if given else None)
    torch.testing.assert_close(deployed(x), model(x))
    assert any("where they would go" in r.sentence for r in reptool.report(deployed).refusals)
    assert deployed.norm.weight is not None


def test_a_wrong_map_of_a_norm_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    true = own_affine.exact_tensors
    monkeypatch.setattr(own_affine, "exact_tensors", lambda *a: [None if t is None else t + 0.1 for t in true(*a)])
    model, x = randomize(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), 1).eval(), torch.randn(TOKENS)
    with pytest.warns(RegionWarning):
        deployed = reptool.deploy(model)
    torch.testing.assert_close(deployed(x), model(x))


def test_what_is_right_is_right_at_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[float] = []

    def seen(*args: Any) -> float:
        errors.append(bare.measure_bare(*args))
        return errors[-1]

    monkeypatch.setattr(regions, "measure_bare", seen)
    for build, shape in TAKEN.values():
        reptool.deploy(randomize(build(), 1).eval(), torch.randn(shape))
    assert len(errors) > len(TAKEN)
    assert max(errors) < 1e-12
