"""Models that change their own state in eval mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import UnsupportedModelError
from reptool.models.state import changed_since, held_by, modules_of
from reptool.testing import randomize
from tests.test_refusals import conv, images


class Observer(nn.Module):
    """Remembers the largest value, and quantizes by it: in float32 alone, as torch does it."""

    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self.rounds = rounds
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("zero", torch.zeros(4, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Round to 255 levels, if it rounds at all."""
        self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        if not self.rounds:
            return x
        scale = (self.largest / 127).expand(4)
        return torch.fake_quantize_per_channel_affine(x, scale, self.zero, 1, -128, 127)


def observed(rounds: bool) -> nn.Module:
    """Rounds between layers: a last bit makes a step of a value."""
    torch.manual_seed(0)
    blocks = [m for _ in range(3) for m in (conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), Observer(rounds))]
    return randomize(nn.Sequential(*blocks)).requires_grad_(False).eval()


def test_a_model_whose_state_decides_its_output_is_named_with_the_modules() -> None:
    x = torch.randn(8, 4, 64, 64)
    with pytest.raises(UnsupportedModelError, match=r"'3' \(largest\), '7' \(largest\), '11' \(largest\).*observers"):
        reptool.deploy(observed(True), x)


def test_state_that_decides_nothing_is_reported() -> None:
    model = observed(False)
    report = reptool.report(reptool.deploy(model, images()))
    assert report.changing == ["3.largest", "7.largest", "11.largest"]
    assert report.norms == (3, 0)
    assert float(model[3].largest) == 0.0, "the caller's model does not run"
    assert reptool.explain(model, images()).changing == report.changing
    assert "3 (largest)" in str(report).replace("'", "")


def test_a_cache_that_is_made_once_is_no_state() -> None:
    class Cached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not hasattr(self, "table"):
                self.register_buffer("table", torch.ones(4, 1, 1), persistent=False)
            return x * self.table

    report = reptool.explain(nn.Sequential(conv(4, 4), Cached()).eval(), images())
    assert report.changing == []


def test_changes_are_seen_in_values_and_of_parameters_in_place() -> None:
    model: Any = nn.BatchNorm1d(2)
    model.eval()
    before = held_by(model)
    model(torch.randn(3, 2))
    assert changed_since(before, model) == []
    with torch.no_grad():
        model.weight.add_(1)
        model.running_var[0] = float("nan")
    assert changed_since(before, model) == ["weight", "running_var"]
    before = held_by(model)
    assert changed_since(before, model) == []
    assert modules_of(["a.b.min", "a.b.max", "scale"]) == "'a.b' (min, max), '<root>' (scale)"
