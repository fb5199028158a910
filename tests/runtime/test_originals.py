"""Kept originals, and twins."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.expect import FUSED, KEPT
from reptool.runtime.originals import Kept, keep, kept_modules, kept_tensors
from reptool.testing import randomize


def kept_net() -> nn.Sequential:
    """A module whose inner layer was changed, with the original kept."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)).eval()
    net.add_module(KEPT, keep(net, {"0.0"}, {"": set(), "1": {"bias"}}, {}))
    with torch.no_grad():
        net[0][0].weight.zero_()  # type: ignore[index, operator, union-attr]
        net[1].bias.add_(1.0)  # type: ignore[operator, union-attr]
    vars(net[0][0])[FUSED] = True  # type: ignore[index]
    return net


def test_a_twin_has_the_originals_and_the_rest_in_common() -> None:
    net = kept_net()
    for module in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin = module._modules[KEPT].twin_of(module)
        assert list(twin._modules) == ["0", "1"]
        assert twin[0][0].weight.abs().sum() > 0
        assert twin[0][1] is module[0][1]
        assert twin[1].weight is module[1].weight
        torch.testing.assert_close(twin[1].bias, module[1].bias - 1)
    assert len(kept_tensors(net)) == 3
    assert {type(m) for m in kept_modules(net)} == {Kept, nn.Linear}


def test_kept_layers_stay_in_eval_mode() -> None:
    net = kept_net()
    net.train()
    assert not any(m.training for m in net._modules[KEPT].modules())  # type: ignore[union-attr]


class Scaled(nn.Conv2d):
    """A convolution whose scale is an attribute."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__(3, 3, 3, padding=1)
        self.demodulated = False

    def forward(self, x: Tensor) -> Tensor:
        """With a weight of norm one, if it is set to."""
        weight = self.weight / self.weight.norm() if self.demodulated else self.weight * self.scale
        return self._conv_forward(x, weight, self.bias)


class Flagged(nn.Module):
    """A flag that leaves out a norm, behind a layer with a flag of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.raw = Scaled(), nn.BatchNorm2d(3), False

    def forward(self, x: Tensor) -> Tensor:
        """With or without the norm."""
        return self.conv(x) if self.raw else self.norm(self.conv(x))


def sets_raw(model: Any) -> None:
    model.raw = True


def replaces(model: Any) -> None:
    model.raw, model.conv = True, nn.Identity()


def renews(model: Any) -> None:
    torch.manual_seed(3)
    model.raw, model.conv = True, Scaled().double()


def demodulates(model: Any) -> None:
    model.conv.demodulated = True


@pytest.mark.parametrize("change", [sets_raw, replaces, renews, demodulates])
def test_a_fallback_runs_what_is_there_now(change: Callable[[Any], None]) -> None:
    model, x = randomize(Flagged(), 1).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    deployed: Any = reptool.deploy(model, x, keep_fallback=True)
    assert len(reptool.report(deployed).regions) == 1
    change(model)
    change(deployed)
    torch.testing.assert_close(deployed(x), model(x))


@pytest.mark.parametrize(
    "change", [lambda m: setattr(m.conv, "padding", (0, 0)), lambda m: m.conv.register_forward_hook(lambda *_: None)]
)
def test_a_fallback_raises_where_the_fused_layer_was_changed(change: Callable[[Any], None]) -> None:
    model, x = randomize(Flagged(), 1).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    deployed: Any = reptool.deploy(model, x, keep_fallback=True)
    deployed.raw = True
    change(deployed)
    with pytest.raises(SpecializedError):
        deployed(x)
