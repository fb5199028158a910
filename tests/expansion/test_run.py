"""`expand` as a whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import reptool
from reptool.blocks import (
    OREPA,
    ACBlock,
    DiverseBranchBlock,
    EdgeOrientedBlock,
    LargeKernelBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RefConv,
    RepVGGBlock,
    parametrizations,
)
from reptool.errors import InputError, UnsupportedModelError
from reptool.expansion import expand, expansion_report
from tests.expansion.networks import Awkward, NormAct, TwoWays, ready, small

SPATIAL: list[Any] = [ACBlock, RepVGGBlock, DiverseBranchBlock, MobileOneBlock, OREPA]
SUMMED: list[Any] = [QARepVGGBlock, EdgeOrientedBlock]
BLOCKS: list[Any] = [
    *SPATIAL,
    *SUMMED,
    RefConv,
    parametrizations.refconv,
    parametrizations.weight_norm,
    parametrizations.dirac_net,
]


def close(found: torch.Tensor, wanted: torch.Tensor, off: float = 1e-5) -> bool:
    return bool((found - wanted).abs().max() <= off * wanted.abs().max())


@pytest.mark.parametrize("branches", ["silent", "live"])
@pytest.mark.parametrize("block", BLOCKS)
def test_outputs_stay_and_deploy_gives_the_original_back(block: Any, branches: Any) -> None:
    net = ready(small())
    before = copy.deepcopy(net.state_dict())
    images = torch.randn(2, 3, 13, 14)
    grown = expand(net, block, branches=branches)
    assert close(grown(images), net(images))
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    plain, wanted = reptool.deploy(grown), reptool.deploy(net)
    assert close(plain(images), net(images))
    found, expected = reptool.report(plain), reptool.report(wanted)
    assert found.layers[1] == expected.layers[1]
    assert found.parameters[1] == expected.parameters[1]
    assert found.norms[1] == expected.norms[1] == 0
    for conv in (m for m in plain.modules() if isinstance(m, nn.Conv2d)):
        assert all(p.requires_grad for p in conv.parameters())


@pytest.mark.parametrize("block", SPATIAL)
def test_silent_blocks_train_as_the_original_does(block: Any) -> None:
    net = ready(small()).train()
    grown = expand(net, block, where=["0", "3"])
    images = torch.randn(4, 3, 13, 14)
    assert grown.training
    assert close(grown(images), net(images), 1e-4)
    grown(images).square().sum().backward()
    assert all(p.grad is not None for p in grown.parameters())


@pytest.mark.parametrize("branches", ["silent", "live"])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("block", [b for b in BLOCKS if b is not LargeKernelBlock])
def test_other_numbers_of_axes(block: Any, dim: int, branches: Any) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dim == 1 else (nn.Conv3d, nn.BatchNorm3d)
    net = ready(nn.Sequential(conv(4, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, 4, 1)))
    images = torch.randn(2, 4, *(7, 6, 5)[:dim])
    if (block is ACBlock and dim == 1) or block is EdgeOrientedBlock:
        with pytest.raises(InputError, match=r"2 or 3 axes|it has no dim"):
            expand(net, block)
        return
    grown = expand(net, block, branches=branches)
    assert close(grown(images), net(images))
    plain = reptool.deploy(grown)
    assert close(plain(images), net(images))
    assert reptool.report(plain).parameters[1] == reptool.report(reptool.deploy(net)).parameters[1]


def test_paper_initialization() -> None:
    net, images = ready(small()), torch.randn(2, 3, 13, 14)
    grown = expand(net, RefConv, preserve=False)
    assert not close(grown(images), net(images), 1e-2)
    assert torch.equal(grown.get_buffer("0.weight"), net.get_parameter("0.weight"))
    branched = expand(net, ACBlock, preserve=False, gamma_init=1 / 3)
    assert torch.equal(branched.get_parameter("0.branches.square.conv.weight"), net.get_parameter("0.weight"))
    assert torch.allclose(branched.get_parameter("0.branches.vertical.bn.weight"), torch.tensor(1 / 3))
    centered = expand(net, parametrizations.centered_weight_norm, preserve=False)
    assert len(expansion_report(centered).replaced) == 4


def test_pointwise_only_when_told() -> None:
    net = ready(small())
    assert "pointwise" in expansion_report(expand(net, RepVGGBlock)).skipped["6"]
    assert "6" not in expansion_report(expand(net, RepVGGBlock, pointwise=True)).skipped
    refocused = expand(net, RefConv, pointwise=True, map_kernel_size=1)
    assert not expansion_report(refocused).skipped
    assert "6" not in expansion_report(expand(net, parametrizations.weight_norm)).skipped


def test_a_bias_is_added_only_when_told() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    assert "no bias" in expansion_report(expand(net, ACBlock)).skipped["0"]
    grown = expand(net, ACBlock, add_bias=True)
    images = torch.randn(2, 3, 9, 9)
    assert close(grown(images), net(images))
    assert not expansion_report(expand(net, RefConv)).skipped


def test_small_kernels_are_skipped_with_a_reason() -> None:
    net = ready(small())
    assert "small kernel" in expansion_report(expand(net, LargeKernelBlock)).skipped["0"]
    assert set(expansion_report(expand(net, LargeKernelBlock, small_kernel=3)).skipped) == {"6"}


def test_doubtful_norms_stay_and_used_convolutions_too() -> None:
    net = ready(Awkward())
    images = torch.randn(2, 4, 9, 9)
    grown = expand(net, RepVGGBlock)
    found = expansion_report(grown)
    assert {s.path: s.norm for s in found.replaced} == {
        "noisy": None,
        "twice": None,
        "read": None,
        "free": "free_bn",
    }
    assert "reads its weight" in found.skipped["weighed"]
    assert isinstance(grown.free_bn, nn.Identity)
    assert isinstance(grown.read_bn, nn.BatchNorm2d)
    assert close(grown(images), net(images))
    two = expand(ready(TwoWays()), RepVGGBlock)
    assert "without bn" in expansion_report(two).replaced[0].note


def test_activations_inside_norms_stay() -> None:
    net = ready(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4, nn.SiLU()), nn.Conv2d(4, 4, 3)))
    grown: Any = expand(net, RepVGGBlock)
    images = torch.randn(2, 3, 9, 9)
    assert close(grown(images), net(images))
    assert isinstance(grown[1].act, nn.SiLU)
    assert not any(isinstance(m, _BatchNorm) for m in grown[1].modules())


def test_aliases_are_replaced_everywhere() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    net = ready(nn.Sequential(conv, nn.ReLU(), conv))
    grown: Any = expand(net, RefConv)
    assert grown[0] is grown[2]
    assert isinstance(grown[0], RefConv)


def test_a_convolution_alone() -> None:
    conv = nn.Conv2d(4, 4, 3).eval()
    assert isinstance(expand(conv, ACBlock), ACBlock)
    with pytest.raises(InputError, match="in place"):
        expand(conv, ACBlock, inplace=True)


def test_inplace_and_twice() -> None:
    net = ready(small())
    assert expand(net, RefConv, inplace=True) is net
    assert isinstance(net[0], RefConv)  # type: ignore[index]
    with pytest.raises(InputError, match=r"part of a block already"):
        expand(net, RefConv, where="0.*")
    again = expand(ready(small()), parametrizations.refconv)
    with pytest.raises(InputError, match="its weight is computed from other parameters, or it has hooks; it is part"):
        expand(again, RefConv, where=["0", "0.*"])


def test_geometry_stays_readable() -> None:
    grown: Any = expand(ready(small()), DiverseBranchBlock, where="3")
    assert grown[3].stride == (2, 2)
    assert grown[3].out_channels == 8


def test_blocks_of_the_users() -> None:
    class Twin(nn.Module):
        def __init__(self, conv: nn.Conv2d) -> None:
            super().__init__()
            self.one, self.two = conv, copy.deepcopy(conv)
            for layer in (self.one, self.two):
                layer.weight.data.mul_(0.5)
                if layer.bias is not None:
                    layer.bias.data.mul_(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.one(x) + self.two(x)
            return y

    def twin(conv: nn.Conv2d) -> nn.Module:
        if conv.groups > 1:
            raise InputError("grouped")
        return Twin(conv)

    net, images = ready(small()), torch.randn(2, 3, 9, 9)
    grown = expand(net, twin)
    assert expansion_report(grown).skipped["3"] == "grouped"
    assert close(grown(images), net(images))
    plain = reptool.deploy(grown)
    assert reptool.report(plain).layers[1] == 4
    with pytest.raises(InputError, match="is off by"):
        expand(net, lambda conv: nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    net = ready(small()).to(dtype)
    grown = expand(net, ACBlock)
    assert {p.dtype for p in grown.parameters()} == {dtype}
    images = torch.randn(2, 3, 9, 9, dtype=dtype)
    assert close(grown(images), net(images), 1e-9 if dtype is torch.float64 else 3e-2)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        net = small()
    assert len(expansion_report(expand(net, RefConv)).replaced) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"block": RefConv, "where": "6"},
            "can become RefConv: pointwise",
        ),
        ({"block": RefConv, "where": "layer*"}, "selects none"),
        ({"block": OREPA, "where": "3", "internal_channels": 3}, "internal_channels"),
        ({"block": DiverseBranchBlock, "where": "3", "internal_channels": 3}, "multiple of groups"),
        ({"block": RefConv, "map_groups": 7}, "divisor"),
        ({"block": RefConv, "identity": False}, "is off by"),
        ({"block": ACBlock, "bogus": 1}, "bogus"),
    ],
)
def test_bad_input_changes_nothing(arguments: dict[str, Any], message: str) -> None:
    net = ready(small())
    before = [(name, id(module)) for name, module in net.named_modules()]
    with pytest.raises(InputError, match=message):
        expand(net, inplace=True, **arguments)
    assert [(name, id(module)) for name, module in net.named_modules()] == before


def test_no_convolutions_and_no_modules() -> None:
    with pytest.raises(InputError, match=r"no nn\.Conv1d"):
        expand(nn.Linear(3, 3), RefConv)
    with pytest.raises(UnsupportedModelError):
        expand("resnet18", RefConv)  # type: ignore[arg-type]


def test_pickled_with_its_report(tmp_path: Any) -> None:
    grown = expand(ready(small()), RepVGGBlock)
    torch.save(grown, tmp_path / "grown.pt")
    loaded = torch.load(tmp_path / "grown.pt", weights_only=False)
    assert expansion_report(loaded).replaced == expansion_report(grown).replaced
