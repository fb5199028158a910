"""Layers that are called more than once: what the calls have in common is fused, and nothing else."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from tests.traps import ConvBN, check, codes, norms, ready


class ScaledCall(nn.Module):
    """One block called twice, once on a scaled input: the scale cannot go into its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Any) -> Any:
        return self.block(x) + self.block(x * 0.5)


class OneNorm(nn.Module):
    """One norm behind two convolutions goes into both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return F.relu(self.bn(self.a(x))) * F.relu(self.bn(self.b(x)))


def test_a_block_keeps_its_own_fusion_where_one_call_could_have_more() -> None:
    deployed, report = check(ready(ScaledCall()))
    assert norms(deployed) == 0
    assert len(report.regions) == 1


def test_a_norm_that_two_layers_share_goes_into_both() -> None:
    deployed, report = check(ready(OneNorm()))
    assert norms(deployed) == 0
    assert len(report.regions) == 2


class Cropped(ConvBN):
    """The padding would see the first norm's bias, and the crop takes that border away."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(3))

    def forward(self, x: Any) -> Any:
        return self.conv(self.bn(F.relu(x)))[:, :, 1:-1, 1:-1]


def test_a_border_that_is_cropped_away_behind_the_layer_is_no_obstacle() -> None:
    deployed, report = check(ready(Cropped()))
    assert norms(deployed) == 0
    assert "border-bias" not in codes(report)


class Uncropped(Cropped):
    def forward(self, x: Any) -> Any:
        return self.conv(self.bn(F.relu(x)))[:, :, 1:, 1:-1]


def test_a_border_that_is_half_cropped_is_one() -> None:
    deployed, report = check(ready(Uncropped()))
    assert norms(deployed) == 1
    assert "border-bias" in codes(report)


class Written(nn.Module):
    """A sum in place that the next branch, a module of its own, is given under its first name."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.Identity()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3)) for _ in range(2)
        )

    def forward(self, x: Any) -> Any:
        x = F.pad(x, (2, 1, 2, 1))
        y = self.skip(x)
        for branch in self.branches:
            y += branch(x)
        return y


def test_a_child_is_given_what_was_written_in_place() -> None:
    deployed, _ = check(ready(Written()))
    assert norms(deployed) == 0


class AsksItsLayer(nn.Module):
    """A method that has to be written anew, and still asks a layer in front of it for its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.bn(self.b(self.a(x))))
        return F.softmax(self.other(self.c(y)) + self.other.bias.sum(), 1, dtype=self.b.weight.dtype)


def test_a_layer_that_is_asked_for_its_dtype_keeps_its_weight() -> None:
    deployed, _ = check(ready(AsksItsLayer()))
    assert hasattr(deployed.b, "weight")


class DataWeight(nn.Module):
    """A weight of five axes times a number computed from the image is no scale along channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(3, 4, 1).weight[None].detach().clone())

    def forward(self, x: Any) -> Any:
        return F.conv2d(x, (self.weight * x.mean())[0])


def test_a_constant_with_more_axes_than_any_layer_is_left() -> None:
    _, report = check(ready(DataWeight()))
    assert report.regions == []
