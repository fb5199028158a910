"""Which norm belongs to which convolution, and which convolutions are somebody else's too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.expansion.structure import structure_of, tail_of
from tests.expansion.networks import Awkward, Noisy, NormAct, Sharpened, TwoWays, ready, small


def test_norms_of_a_sequence() -> None:
    net = small()
    found = structure_of(net)
    assert found.norms == {"0": "1", "3": "4", "6": "7"}
    assert not found.used
    assert net.training


def test_only_what_nobody_else_reads() -> None:
    found = structure_of(Awkward())
    assert found.norms == {"free": "free_bn"}
    assert "reads its weight" in found.used["weighed"]


def test_training_mode_and_other_forwards_keep_the_norm() -> None:
    found = structure_of(nn.Sequential(Noisy(), TwoWays()))
    assert not found.norms
    assert "training mode" in found.kept["0.conv"]
    assert "forward_plain uses conv without bn" in found.kept["1.conv"]


def test_norms_with_an_activation() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4), nn.Conv2d(4, 4, 3), Sharpened(4)))
    found = structure_of(net)
    assert found.norms == {"0": "1"}
    tail = tail_of(net[1])  # type: ignore[index]
    assert tail is not None
    assert [name for name, _ in tail.named_children()] == ["drop", "act"]
    assert tail_of(net[3]) is None  # type: ignore[index]
    assert tail_of(nn.BatchNorm2d(4, track_running_stats=False)) is None
    assert tail_of(nn.GroupNorm(1, 4)) is None


@pytest.mark.parametrize("kind", ["hook", "tied"])
def test_hooks_and_shared_weights(kind: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    if kind == "hook":
        net[0].register_forward_hook(lambda *_: None)
    else:
        net[1].weight = net[0].weight
    used = structure_of(net).used
    assert "hooks" in used["0"] if kind == "hook" else "shared" in used["0"] and "shared" in used["1"]


def test_modules_in_plain_attributes() -> None:
    net = small()
    net.kept = [net[0]]
    assert "plain attribute" in structure_of(net).used["0"]


def test_meta_models_have_structure() -> None:
    with torch.device("meta"):
        net = small()
    assert structure_of(net).norms == {"0": "1", "3": "4", "6": "7"}
