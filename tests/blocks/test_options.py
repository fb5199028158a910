"""Every option of every block: the plain convolution's shape, gradients, copies and checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptool.blocks import BNAndPad, DiverseBranchBlock
from tests.blocks.formulas import gradients
from tests.blocks.options import Option, all_options, randomize, rep_next_block_options

OPTIONS = [*all_options(), *rep_next_block_options()]
BY_BLOCK: dict[str, list[Option]] = {}
for _option in OPTIONS:
    BY_BLOCK.setdefault(_option.id.split("-")[0], []).append(_option)
ONE_A_BLOCK = [options[-1] for options in BY_BLOCK.values()]
each_block = pytest.mark.parametrize("options", list(BY_BLOCK.values()), ids=list(BY_BLOCK))
"""A test for each block, of all its options."""


def test_ids_are_unique() -> None:
    assert len({o.id for o in OPTIONS}) == len(OPTIONS) > 200


@each_block
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_shape_of_the_plain_convolution(options: list[Option], training: bool) -> None:
    for option in options:
        block, plain = option.build().train(training), option.plain()
        for size in (13, 14, 15):
            x = option.inputs(size, dtype=torch.float32)
            assert block(x).shape == plain(x).shape, option.id


@each_block
def test_gradients_reach_every_parameter(options: list[Option]) -> None:
    for option in options:
        torch.manual_seed(0)
        block = randomize(option.build()).double().train()
        found = gradients(block, option.inputs(9))
        assert found, option.id
        frozen = {name for name, p in block.named_parameters() if not p.requires_grad}
        assert {name for name, size in found.items() if size == 0} == frozen, option.id


@pytest.mark.parametrize("option", ONE_A_BLOCK, ids=lambda o: o.id)
def test_copies_and_checkpoints(option: Option) -> None:
    block = randomize(option.build(), seed=1).double().eval()
    x = option.inputs()
    other = option.build().double().eval()
    assert not torch.equal(other(x), block(x))
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x), block(x))
    assert torch.equal(copy.deepcopy(block)(x), block(x))


@pytest.mark.parametrize("block", [name for name in BY_BLOCK if not name.startswith("param_")])
def test_forward_is_straight_line(block: str) -> None:
    for option in BY_BLOCK[block]:
        module = randomize(option.build(), seed=2).double().eval()
        x = option.inputs()
        assert torch.equal(torch.fx.symbolic_trace(module)(x), module(x)), option.id


@pytest.mark.parametrize("option", ONE_A_BLOCK, ids=lambda o: o.id)
def test_mixed_precision(option: Option) -> None:
    block = option.build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(option.inputs(dtype=torch.float32))
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters() if p.requires_grad)


@pytest.mark.parametrize("option", ONE_A_BLOCK, ids=lambda o: o.id)
def test_half_precision_weights(option: Option) -> None:
    block = option.build().to(torch.bfloat16)
    assert block(option.inputs(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_conversion_to_synchronized_norms_keeps_the_padding() -> None:
    block = DiverseBranchBlock(4, 4)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(block)
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in converted.modules()) == norms == 6
    assert sum(isinstance(m, BNAndPad) for m in converted.modules()) == 2


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
