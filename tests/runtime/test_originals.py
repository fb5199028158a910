"""Kept originals, and twins."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import nn

from reptool.runtime.expect import KEPT
from reptool.runtime.originals import Kept, keep, kept_modules, kept_tensors


def kept_net() -> nn.Sequential:
    """A module whose inner layer was changed, with the original kept."""
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2)).eval()
    net.add_module(KEPT, keep(net, {"0.0"}, {"": set(), "1": {"bias"}}, {}))
    with torch.no_grad():
        net[0][0].weight.zero_()  # type: ignore[index, operator, union-attr]
        net[1].bias.add_(1.0)  # type: ignore[operator, union-attr]
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
