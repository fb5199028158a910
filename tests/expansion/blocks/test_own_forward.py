"""Convolutions whose class has a forward of its own: expanded where that is exact, named where it is not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.blocks import OREPA, ACBlock, DiverseBranchBlock, QARepVGGBlock, RefConv, RepVGGBlock, parametrizations
from reptool.blocks.behind import Behind, FixedPad, SamePad
from reptool.errors import InputError
from reptool.expansion.blocks.own_forward import Reading, read
from reptool.testing import assert_equivalent, randomize


class Same(nn.Conv2d):
    """As in timm: the padding follows the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.missing(n, i) for i, n in enumerate(x.size()[-2:]))
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)

    def missing(self, n: int, i: int) -> int:
        k, s, d = self.kernel_size[i], self.stride[i], self.dilation[i]
        return max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)


class Causal(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class Mirrored(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, weight, bias, self.stride, 0, self.dilation, self.groups)


class Checked(nn.Conv2d):
    """A convolution after all."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4, x.shape
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Masked(nn.Conv2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        mask = torch.ones_like(self.weight)
        mask[..., -1] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.mask, self.bias)


class Noisy(nn.Conv2d):
    """A convolution in eval mode alone."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 2 if self.training else y


class Large(nn.Conv2d):
    """Another padding for images of one row, where a smaller kernel would do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)) if x.shape[-1] > 2 else F.pad(x, (2, 2, 1, 1)))


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Two(nn.Conv2d):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


@pytest.mark.parametrize(
    ("conv", "pad"),
    [
        (Same(4, 6, 3, stride=2), SamePad),
        (Same(4, 4, 5, stride=(3, 1), groups=4, bias=False), SamePad),
        (Same(4, 6, (3, 2), stride=2, dilation=(1, 3)), SamePad),
        (Causal(4, 6, 3, dilation=2, stride=2), FixedPad),
        (Causal(4, 6, 4), FixedPad),
        (Mirrored(4, 6, 3, stride=2), FixedPad),
        (Checked(4, 6, 3, padding=1, stride=2), None),
        (Checked(4, 6, 3, bias=False), None),
        (nn.Conv2d(4, 6, 3, padding=1), None),
    ],
)
def test_a_class_is_a_plain_convolution_behind_a_padding(conv: Any, pad: Any) -> None:
    found = read(conv)
    assert isinstance(found, Reading)
    assert pad is None if found.pad is None else isinstance(found.pad, pad)
    shape = (2, 4, 8, 9)[: conv.weight.dim()]
    behind = found.plain if found.pad is None else nn.Sequential(found.pad, found.plain)
    assert_equivalent(conv, behind, torch.randn(shape), rtol=1e-12)


@pytest.mark.parametrize("kind", [Standardized, Masked, Noisy, Large, Scaled])
def test_what_is_more_than_that_says_so(kind: Any) -> None:
    found = read(kind(4, 6, 3))
    assert isinstance(found, str)
    assert f"{kind.__name__} has a forward of its own, which is no convolution of its (padded) input" in found


def test_what_does_not_run_by_itself_says_so() -> None:
    assert "does not run by itself (TypeError" in str(read(Two(4, 6, 3)))
    assert "not on the meta device" in str(read(Same(4, 6, 3, device="meta")))


def network(kind: Any = Same, norm: bool = True) -> nn.Sequential:
    first = kind(3, 8, 3, stride=2, bias=not norm)
    second = kind(8, 8, 3, groups=8, bias=not norm)
    behind = [nn.BatchNorm2d(8)] if norm else []
    return randomize(nn.Sequential(first, *behind, nn.ReLU(), second, *behind[:0], nn.Conv2d(8, 4, 1))).eval()


@pytest.mark.parametrize("branches", ["silent", "live"])
@pytest.mark.parametrize("block", [ACBlock, DiverseBranchBlock, OREPA, RefConv])
def test_blocks_behind_padding_that_follows_the_size(block: Any, branches: Any) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    grown = reptool.expand(net, block, branches=branches, add_bias=True)
    report = reptool.expansion_report(grown)
    assert [site.path for site in report.replaced] == ["0", "3"]
    assert report.replaced[0].norm == (None if block is RefConv else "1")
    assert "behind SamePad" in report.replaced[1].note
    assert isinstance(grown[0], Behind)
    assert (grown[0].stride, grown[0].in_channels) == ((2, 2), 3)  # type: ignore[attr-defined]
    x = torch.randn(2, 3, 13, 12)
    assert_equivalent(net, grown, x, rtol=2e-4)
    deployed = reptool.deploy(grown, x)
    assert_equivalent(net, deployed, x, rtol=2e-4)
    convs = [m for m in deployed.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_live_branches_are_measured_behind_the_padding() -> None:
    net, x = network(), torch.randn(4, 3, 13, 12)
    grown = reptool.expand(net, DiverseBranchBlock, branches="live", calibrate_on=[x], where="0")
    assert torch.allclose(grown(x), net(x), atol=1e-4)


@pytest.mark.parametrize("kind", [Standardized, Masked, Scaled])
def test_a_parametrization_goes_onto_any_class(kind: Any) -> None:
    net, x = network(kind), torch.randn(2, 3, 13, 12)
    grown = reptool.expand(net, parametrizations.weight_norm)
    assert torch.allclose(grown(x), net(x), atol=1e-5)
    assert isinstance(grown[0], kind)
    with pytest.raises(InputError, match=f"{kind.__name__} has a forward of its own"):
        reptool.expand(net, ACBlock)


def test_a_function_of_the_callers_is_given_the_plain_convolution() -> None:
    seen: list[nn.Module] = []

    def same(conv: nn.Conv2d) -> nn.Module:
        seen.append(conv)
        return conv

    net, x = network(), torch.randn(2, 3, 13, 12)
    grown = reptool.expand(net, same, where=3)
    assert {(type(c), c.padding) for c in seen} == {(nn.Conv2d, (0, 0))}
    assert torch.allclose(grown(x), net(x), atol=1e-6)


def test_refocusing_of_such_classes_gives_the_names_back() -> None:
    net, x = network(norm=False), torch.randn(2, 3, 13, 12)
    pipeline = reptool.Refocusing(net, init="zeros")
    assert list(pipeline.layers) == ["0", "2"]
    assert torch.allclose(pipeline.model(x), net(x), atol=1e-5)
    state = pipeline.finish()
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


def test_blocks_of_fixed_padding_refuse_a_padding_they_do_not_have() -> None:
    net = network(norm=False)
    for block in (RepVGGBlock, QARepVGGBlock):
        grown = reptool.expand(net, block, where=3, add_bias=True, preserve=True)
        assert torch.allclose(grown(torch.ones(1, 3, 9, 9)), net(torch.ones(1, 3, 9, 9)), atol=1e-5)
