"""Layers in front of a norm that would mean another axis for inputs of another rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.hooks import guarded_rank
from reptool.testing import assert_equivalent, randomize


def _model() -> nn.Module:
    layers = [nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)]
    return randomize(nn.Sequential(*layers), 0).double().eval()


def test_an_unbatched_signal_of_as_many_positions_as_channels_raises() -> None:
    model = _model()
    deployed = reptool.deploy(model)
    assert_equivalent(model, deployed, torch.randn(2, 4, 9, dtype=torch.float64))
    model(torch.randn(4, 4).double())  # the norm takes positions for channels
    with pytest.raises(SpecializedError, match="3 dimensions"):
        deployed(torch.randn(4, 4).double())


def test_the_guard_outlives_another_deploy_and_blocks_nothing() -> None:
    deployed = reptool.deploy(_model(), include=["0", "1"])
    again = reptool.deploy(deployed)
    assert len(reptool.report(again).regions) == 1
    assert not any(isinstance(m, nn.BatchNorm1d) for m in again)
    assert [guarded_rank(m) for m in again] == [3, None, None, 3, None]


def test_two_and_three_axes_need_no_guard() -> None:
    deployed = reptool.deploy(randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0).eval())
    assert guarded_rank(deployed[0]) is None
