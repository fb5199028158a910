"""What a plan says of the layers and parameters that are left is what is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.testing import randomize
from tests.networks import random_network
from tests.sparse import sparse
from tests.test_refusals import conv


def same(model: nn.Module) -> None:
    """Compare a plan with what was done."""
    plan, done = reptool.explain(model), reptool.report(reptool.deploy(model))
    assert plan.layers == done.layers
    assert plan.parameters == done.parameters
    assert plan.norms == done.norms
    assert plan.norms_left == done.norms_left


@pytest.mark.parametrize("first", sparse(range(0, 40, 10), 4))
def test_a_plan_knows_what_is_left_of_random_networks(first: int) -> None:
    for seed in range(first, first + 10):
        same(random_network(seed)[0])


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(RepVGGBlock(3, 8), DiverseBranchBlock(8, 8)),
        nn.Sequential(weight_norm(nn.Conv2d(4, 4, 3)), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), conv(4, 8, 1)),
        nn.Conv2d(3, 4, 3),
    ],
    ids=["blocks", "parametrized", "padding in front", "two layers", "a layer"],
)
def test_a_plan_knows_what_is_left(model: nn.Module) -> None:
    torch.manual_seed(0)
    same(randomize(model, 0).eval())
