"""Statistics of new blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from reptool.blocks import OREPA, ACBlock, DiverseBranchBlock, MobileOneBlock, QARepVGGBlock, RepVGGBlock
from reptool.errors import InputError
from reptool.expansion import expand
from tests.expansion.networks import ready, small


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.mark.parametrize("branches", ["silent", "live"])
@pytest.mark.parametrize("block", [ACBlock, RepVGGBlock, MobileOneBlock, OREPA, DiverseBranchBlock, QARepVGGBlock])
def test_training_mode_computes_what_eval_mode_does(block: Any, branches: Any) -> None:
    net = ready(small())
    batches = [torch.randn(16, 3, 12, 12) for _ in range(6)]
    images = torch.cat(batches)
    grown = expand(net, block, branches=branches, calibrate_on=batches)
    assert off(grown(images), net(images)) < 1e-4
    for module in grown.modules():  # the norms that stayed are not what is measured
        stayed = isinstance(module, nn.BatchNorm2d) and any(module is layer for layer in grown.children())
        module.training = not stayed
    nested = block is DiverseBranchBlock and branches == "live"  # norms of norms: batches differ more
    assert off(grown(images), net(images)) < (0.15 if nested else 0.02)


def test_without_it_live_branches_change_training_mode() -> None:
    net, images = ready(small()), torch.randn(16, 3, 12, 12)
    grown = expand(net, ACBlock, branches="live").train()
    assert off(grown(images), net(images)) > 0.1


def test_paper_initialization_gets_statistics_too() -> None:
    net, images = ready(small()), torch.randn(64, 3, 12, 12)
    grown = expand(net, ACBlock, where="0", preserve=False, calibrate_on=images)
    bn: Any = grown.get_submodule("0.branches.horizontal.bn")
    conv = grown.get_submodule("0.branches.horizontal.conv")
    torch.testing.assert_close(bn.running_mean, conv(images).mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert bn.momentum == 0.1


def test_inputs_of_every_kind() -> None:
    net, images = ready(small()), torch.randn(4, 3, 12, 12)
    states = []
    for given in (images, [images], [(images,)], [{"input": images}]):
        torch.manual_seed(0)
        states.append(expand(net, MobileOneBlock, calibrate_on=given, where="3").state_dict())
    for other in states[1:]:
        torch.testing.assert_close(other, states[0])


def test_a_constant_channel_is_not_amplified() -> None:
    net = ready(small())
    with torch.no_grad():
        net[1].bias[0] = -100  # type: ignore[index]
    grown = expand(net, DiverseBranchBlock, branches="live", calibrate_on=torch.randn(8, 3, 12, 12))
    images = torch.randn(4, 3, 12, 12)
    assert off(grown(images), net(images)) < 1e-4


@pytest.mark.parametrize("block", [RepVGGBlock, MobileOneBlock, DiverseBranchBlock])
def test_a_channel_that_hardly_varies_trains_as_it_evaluates(block: Any) -> None:
    net: Any = ready(small())
    with torch.no_grad():  # its variance is about 1e-6, and eps 1e-5
        net[1].weight[0] = 1e-3
        net[1].bias[0] = 0
    images = torch.randn(64, 3, 12, 12)
    grown = expand(net, block, where="3", branches="live", calibrate_on=images)
    before = grown(images)
    grown.get_submodule("3").train()
    assert off(grown(images), before) < 0.05


def test_no_batches() -> None:
    with pytest.raises(InputError, match="no batches"):
        expand(ready(small()), ACBlock, calibrate_on=[])
