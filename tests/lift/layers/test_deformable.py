"""Deformable convolutions: what stands behind them goes into their rows, what stands in front or beside stays."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.testing import randomize

vision = pytest.importorskip("torchvision.ops")
pytestmark = pytest.mark.models
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A deformable convolution with what gives it its offsets and masks, a norm, and a pointwise layer."""

    def __init__(self, forward: Forward, offsets: int = 1, masked: bool = False, **options: Any) -> None:
        super().__init__()
        stride = options.get("stride", 1)
        self.own, self.masked = forward, masked
        self.offset = nn.Conv2d(4, 18 * offsets, 3, padding=1, stride=stride)
        self.mask = nn.Conv2d(4, 9 * offsets, 3, padding=1, stride=stride)
        self.conv = vision.DeformConv2d(4, 6, 3, padding=1, **options)
        self.bn, self.point = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
        self.w, self.front = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.BatchNorm2d(4)
        self.b = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        """By the function."""
        return self.own(self, x)


def sampled(self: Any, x: Tensor) -> Tensor:
    """The deformable convolution."""
    return self.conv(x, self.offset(x), self.mask(x).sigmoid() if self.masked else None)  # type: ignore[no-any-return]


def behind(self: Any, x: Tensor) -> Tensor:
    """A norm."""
    return torch.relu(self.bn(sampled(self, x)))


def written(self: Any, x: Tensor) -> Tensor:
    """The function, with weights of one's own."""
    return self.bn(vision.deform_conv2d(x, self.offset(x), self.w, self.b, padding=(1, 1)))  # type: ignore[no-any-return]


def without_bias(self: Any, x: Tensor) -> Tensor:
    """The function, without a bias."""
    return self.bn(vision.deform_conv2d(x, self.offset(x), self.w, padding=1))  # type: ignore[no-any-return]


def pointwise(self: Any, x: Tensor) -> Tensor:
    """A norm and a pointwise layer."""
    return self.point(self.bn(sampled(self, x)))  # type: ignore[no-any-return]


def upsampled(self: Any, x: Tensor) -> Tensor:
    """A norm behind what was upsampled."""
    return self.bn(F.interpolate(sampled(self, x), scale_factor=2))  # type: ignore[no-any-return]


def twice(self: Any, x: Tensor) -> Tensor:
    """One weight at two sets of places."""
    offset = self.offset(x)
    places = (offset, offset.neg())
    return self.bn(sum(vision.deform_conv2d(x, o, self.w, self.b, padding=1) for o in places))  # type: ignore[no-any-return]


def in_front(self: Any, x: Tensor) -> Tensor:
    """A norm in front."""
    y = self.front(x)
    return torch.relu(self.conv(y, self.offset(x)))


TAKEN: dict[str, Callable[[], Net]] = {
    "without bias": lambda: Net(behind, bias=False),
    "bias": lambda: Net(behind),
    "groups": lambda: Net(behind, groups=2),
    "masks, groups of offsets": lambda: Net(behind, 2, True, bias=False),
    "stride": lambda: Net(behind, stride=2),
    "function": lambda: Net(written),
    "function without bias": lambda: Net(without_bias),
    "pointwise": lambda: Net(pointwise),
    "upsampled": lambda: Net(upsampled),
}


def deployed(model: nn.Module, shown: bool) -> reptool.Report:
    """The report of a deployed model, which is compared at two sizes."""
    model = randomize(model).double().eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    made = reptool.deploy(model, *((x,) if shown else ()))
    for value in (x, x[:, :, 2:, 1:]):
        torch.testing.assert_close(made(value), model(value), rtol=1e-9, atol=1e-9)
    return reptool.report(made)


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("name", TAKEN)
def test_what_stands_behind_goes_into_the_rows(name: str, shown: bool) -> None:
    report = deployed(TAKEN[name](), shown)
    assert {r.layer.split(" ")[0] for r in report.regions} & {"conv", "<root>"}
    assert "bn" not in {p for r in report.refusals for p in r.nodes}


def test_samples_at_other_places_are_no_samples_of_one_layer() -> None:
    report = deployed(Net(twice), True)
    assert Code.BORDER_UNKNOWN in {r.code for r in report.refusals}


def test_what_stands_in_front_stays() -> None:
    report = deployed(Net(in_front), True)
    assert Code.BORDER_BIAS in {r.code for r in report.refusals}


def test_channels_are_not_mixed_behind_groups() -> None:
    report = deployed(Net(pointwise, groups=2), True)
    assert Code.CHANNELS in {r.code for r in report.refusals}


def test_a_weight_from_data_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.w * x.mean()
        return self.bn(vision.deform_conv2d(x, self.offset(x), weight, padding=1))  # type: ignore[no-any-return]

    assert Code.DATA_WEIGHT in {r.code for r in deployed(Net(forward), True).refusals}


def test_the_code_of_a_layer_of_torchvision_stays() -> None:
    model = randomize(Net(behind, bias=False)).double().eval()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    made = reptool.deploy(model, x)
    assert made.conv.bias is not None
    assert type(made.conv) is type(model.conv) or isinstance(made.conv, vision.DeformConv2d)
    assert "zeros" not in inspect.getsource(type(made.conv).forward)
    flat = reptool.deploy(model, x, flatten=True)
    torch.testing.assert_close(flat(x), model(x))
    again = pickle.loads(pickle.dumps(made))
    torch.testing.assert_close(again(x), model(x))
