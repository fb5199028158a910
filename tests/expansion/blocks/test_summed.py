"""QARepVGG and the edge-oriented block in place of convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import reptool
from reptool.blocks import EdgeOrientedBlock, QARepVGGBlock
from reptool.expansion import expand, expansion_report
from tests.expansion.networks import ready


def pair(bias: bool = True, norm: bool = True) -> nn.Sequential:
    behind = [nn.BatchNorm2d(4)] if norm else []
    net = ready(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=bias), *behind, nn.ReLU()))
    assert isinstance(net, nn.Sequential)
    return net


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("branches", ["silent", "live"])
@pytest.mark.parametrize("block", [QARepVGGBlock, EdgeOrientedBlock])
def test_starts_as_the_convolution(block: Any, branches: Any, norm: bool, bias: bool) -> None:
    net, images = pair(bias, norm), torch.randn(2, 4, 7, 8)
    grown = expand(net, block, branches=branches, add_bias=True)
    torch.testing.assert_close(grown(images), net(images), rtol=1e-4, atol=1e-5)
    assert (expansion_report(grown).replaced[0].norm is not None) == (norm and block is QARepVGGBlock)
    deployed = reptool.deploy(grown)
    torch.testing.assert_close(deployed(images), net(images), rtol=1e-4, atol=1e-5)
    assert reptool.report(deployed).layers[1] == 1
    if not (norm or bias):
        with pytest.raises(reptool.errors.InputError, match="no bias"):
            expand(net, block, branches=branches)


def test_silent_branches_get_gradients() -> None:
    for block in (QARepVGGBlock, EdgeOrientedBlock):
        grown = expand(pair().train(), block)
        grown(torch.randn(4, 4, 7, 8)).square().sum().backward()
        assert all(p.grad is not None for p in grown.parameters())


def test_the_dense_branch_makes_up_for_the_identity() -> None:
    net = pair()
    block: Any = expand(net, QARepVGGBlock)[0]  # type: ignore[index]
    assert block.branches.point.conv.weight.abs().max() == 0
    kernel: Any = net[0].weight
    identity = nn.init.dirac_(torch.empty(4, 4, 3, 3))
    torch.testing.assert_close(block.branches.dense.conv.weight, kernel - identity, rtol=1e-5, atol=1e-6)


def test_papers_initialization_keeps_the_kernel() -> None:
    net = pair()
    for block, path in ((QARepVGGBlock, "branches.dense.conv"), (EdgeOrientedBlock, "branches.dense")):
        grown: Any = expand(net, block, preserve=False)
        assert torch.equal(grown[0].get_submodule(path).weight, net[0].weight)
