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
    frozen = {name for name, p in block.named_parameters() if not p.requires_grad}
    assert {name for name, size in found.items() if size == 0} == frozen


@pytest.mark.parametrize("option", ONE_A_BLOCK, ids=lambda o: o.id)
def test_copies_and_checkpoints(option: Option) -> None:
    block = randomize(option.build(), seed=1).double().eval()
    x = option.inputs()
    other = option.build().double().eval()
    assert not torch.equal(other(x), block(x))
    other.load_state_dict(block.state_dict())
    assert torch.equal(other(x), block(x))
    assert torch.equal(copy.deepcopy(block)(x), block(x))


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.id.startswith("param_")], ids=lambda o: o.id)
def test_forward_is_straight_line(option: Option) -> None:
    block = randomize(option.build(), seed=2).double().eval()
    x = option.inputs()
    assert torch.equal(torch.fx.symbolic_trace(block)(x), block(x))


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
