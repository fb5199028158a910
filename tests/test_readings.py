"""Methods without arguments that compute something from weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import reptool
from reptool.errors import SpecializedError
from tests.traps import ConvBN, ready


class Penalized(ConvBN):
    def penalty(self) -> Any:
        return self.conv.weight.square().sum() + self.bn.weight.abs().sum()

    def last_weight(self) -> Any:
        return self.conv.weight

    def width(self) -> Any:
        return self.conv.weight.shape[0] * 2


def test_a_penalty_on_weights_that_are_others_now_raises() -> None:
    model = ready(Penalized())
    deployed: Any = reptool.deploy(model)
    with pytest.raises(SpecializedError, match="penalty"):
        deployed.penalty()
    assert model.penalty() > 0


def test_handing_out_a_weight_and_its_shape_stays() -> None:
    deployed: Any = reptool.deploy(ready(Penalized()))
    assert deployed.width() == 8
    assert deployed.last_weight() is deployed.conv.weight
    assert torch.equal(copy.deepcopy(deployed).last_weight(), deployed.conv.weight)
