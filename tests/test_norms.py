"""Norms behind the layers of a deployed model change no output in eval mode, train, and are folded again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.errors import InputError, VerificationError
from reptool.testing import randomize

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    """Blocks of two kinds, and a head."""
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return nn.Sequential(RepVGGBlock(3, 6, stride=2), DiverseBranchBlock(6, 6, activation=nn.ReLU), *tail)


def deployed() -> nn.Module:
    """With statistics that a trained one could have."""
    return reptool.deploy(randomize(net().eval()))


def test_outputs_stay_and_statistics_are_those_of_the_layers() -> None:
    model = deployed()
    made = reptool.insert_norms(model, [IMAGES[:4], IMAGES[4:]])
    norms = {p: m for p, m in made.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert list(norms) == ["0.branches.dense.conv.norm", "1.branches.origin.conv.norm"]
    torch.testing.assert_close(made(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    first: Any = reptool.release(copy.deepcopy(model))[0].branches.dense.conv
    with torch.no_grad():
        wanted = first(IMAGES)
    norm = norms["0.branches.dense.conv.norm"]
    torch.testing.assert_close(norm.running_mean + first.bias, wanted.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, wanted.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-6)
    assert made[0].branches.dense.conv.conv.bias is None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_it_trains_and_is_folded_again() -> None:
    made = reptool.insert_norms(deployed(), IMAGES).train()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    before = made[0].branches.dense.conv.norm.running_mean.clone()
    for _ in range(3):
        optimizer.zero_grad()
        made(IMAGES).square().mean().backward()
        optimizer.step()
    assert not torch.equal(made[0].branches.dense.conv.norm.running_mean, before)
    made.load_state_dict(copy.deepcopy(made.state_dict()))
    again = reptool.deploy(made.eval(), IMAGES, require="no_batchnorm")
    torch.testing.assert_close(again(IMAGES), made(IMAGES), rtol=1e-4, atol=1e-5)


def test_case_of_rep_vgg() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    model = reptool.deploy(layers)
    for where, count in ((None, 1), ("*", 2), (1, 1), (nn.Conv2d, 2)):
        made = reptool.insert_norms(model, [IMAGES], where=where)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == count
        torch.testing.assert_close(made(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_every_number_of_axes_and_inputs_of_every_kind(axes: int) -> None:
    conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
    model = reptool.deploy(randomize(nn.Sequential(conv(2, 5, 3, padding=1), norm(5)).eval()))
    x = torch.randn(4, 2, *[6] * axes)
    for batches in (x, [x], [(x,)], [{"input": x}]):
        made = reptool.insert_norms(model, batches)
        assert isinstance(made[0][1], norm)
        torch.testing.assert_close(made(x), model(x), rtol=1e-5, atol=1e-5)


def test_padding_of_its_own_shared_layers_and_half_precision() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
            self.again = self.body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = reptool.deploy(randomize(Shared().eval())).to(torch.bfloat16)
    made = reptool.insert_norms(model, IMAGES.bfloat16())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == 1
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}


def test_a_channel_that_is_constant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 0
    made = reptool.insert_norms(model, IMAGES, where="0")
    torch.testing.assert_close(made(IMAGES), model(IMAGES))
    assert made.train()(IMAGES).isfinite().all()


class Reads(nn.Module):
    """Other code reads the layer's bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.kept = [self.conv]

    def forward(self, x: Tensor) -> Tensor:
        return self.kept[0](x)


def test_what_cannot_get_norms_is_told() -> None:
    model = deployed()
    with pytest.raises(InputError, match="insert_norms: no batches were given"):
        reptool.insert_norms(model, [])
    with pytest.raises(InputError, match="name its layers with where"):
        reptool.insert_norms(net().eval(), IMAGES)
    with pytest.raises(InputError, match="none of the batches reaches 'unused'"):
        reptool.insert_norms(Reads().eval(), IMAGES, where="unused")
    with pytest.raises(InputError, match="deploy made no convolution"):
        reptool.insert_norms(reptool.deploy(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()), IMAGES)
    with pytest.raises(VerificationError, match=r"output 0 of the model is off by .* choose other layers"):
        reptool.insert_norms(Reads().eval(), IMAGES, where="conv")
    with pytest.raises(reptool.ReptoolError, match="insert_norms takes a model"):
        reptool.insert_norms({}, IMAGES)  # type: ignore[type-var]


def test_deployed_models_are_known() -> None:
    model = deployed()
    assert reptool.is_deployed(model)
    assert reptool.is_deployed(copy.deepcopy(model))
    assert not reptool.is_deployed(net())
    assert not reptool.is_deployed(reptool.insert_norms(model, IMAGES))
