"""Every option of every block: the plain convolution's shape, gradients, copies and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.blocks.formulas import gradients
from tests.blocks.options import Option, all_options, randomize

OPTIONS = list(all_options())
ONE_A_BLOCK = list({o.id.split("-")[0]: o for o in OPTIONS}.values())


def test_ids_are_unique() -> None:
    assert len({o.id for o in OPTIONS}) == len(OPTIONS) > 200


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_shape_of_the_plain_convolution(option: Option, training: bool) -> None:
    block, plain = option.build().train(training), option.plain()
    for size in (13, 14, 15):
        x = option.inputs(size, dtype=torch.float32)
        assert block(x).shape == plain(x).shape


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o.id)
def test_gradients_reach_every_parameter(option: Option) -> None:
    torch.manual_seed(0)
    block = randomize(option.build()).double().train()
    found = gradients(block, option.inputs(9))
    assert found
    assert [name for name, size in found.items() if size == 0] == []


@pytest.mark.parametrize("option", ONE_A_BLOCK, ids=lambda o: o.id)
def test_copies_and_checkpoints(option: Option) -> None:
    block = randomize(option.build(), seed=1).double().eval()
    x = option.inputs()
    other = option.build().double().eval()
    assert not torch.equal(other(x), block(x))
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x), block(x))
    assert torch.equal(copy.deepcopy(block)(x), block(x))


def test_randomize_leaves_no_fresh_statistics() -> None:
    module = randomize(nn.Sequential(nn.Conv2d(3, 50, 1), nn.BatchNorm2d(50)), seed=3)
    norm = module[1]
    assert isinstance(norm, _BatchNorm)
    assert norm.weight.min() < -0.5
    assert norm.weight.max() > 0.5
    assert norm.weight.abs().min() >= 0.5
    assert norm.running_var.min() >= 0.5
    assert norm.running_mean.std() > 0.5
    again = randomize(nn.Sequential(nn.Conv2d(3, 50, 1), nn.BatchNorm2d(50)), seed=3)[1]
    assert torch.equal(norm.running_mean, again.running_mean)
