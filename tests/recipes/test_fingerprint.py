"""A model that was deployed already is returned as it is; one that was changed since is looked at again."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import reptool
from reptool.errors import InputError, RequirementError
from tests.traps import ConvBN, image, ready


def test_the_second_deploy_returns_the_same_layers() -> None:
    deployed = reptool.deploy(ready(ConvBN()))
    again = reptool.deploy(deployed)
    assert again is not deployed
    assert list(again.state_dict()) == list(deployed.state_dict())
    assert reptool.deploy(deployed, inplace=True) is deployed
    assert len(reptool.report(again).regions) == 1


def test_it_is_known_after_a_copy_and_a_pickle() -> None:
    deployed = reptool.deploy(ready(ConvBN()), image())
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert list(reptool.deploy(other, image()).state_dict()) == list(deployed.state_dict())


def test_fine_tuned_values_are_kept() -> None:
    deployed = reptool.deploy(ready(ConvBN()))
    with torch.no_grad():
        deployed.conv.weight.mul_(2)
    assert torch.equal(reptool.deploy(deployed).conv.weight, deployed.conv.weight)


def test_a_layer_that_was_put_in_since_is_fused() -> None:
    deployed = reptool.deploy(ready(ConvBN()))
    deployed.bn = nn.BatchNorm2d(4).eval()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in reptool.deploy(deployed).modules())


def test_other_options_are_another_deployment() -> None:
    model = nn.Sequential(ConvBN()).eval()
    deployed = reptool.deploy(model, exclude="0")
    assert reptool.report(deployed).regions == []
    assert len(reptool.report(reptool.deploy(deployed)).regions) == 1


def test_it_is_checked_all_the_same() -> None:
    deployed = reptool.deploy(ready(ConvBN()))
    deployed.train()
    with pytest.raises(InputError):
        reptool.deploy(deployed)
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)).eval()
    with pytest.raises(RequirementError):
        reptool.deploy(reptool.deploy(model), require="no_batchnorm")
