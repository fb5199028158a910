"""Opaque modules in a model: by whose word they are read, what fuses with them, what is refused and reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import InputError, RequirementError, SpecializedError
from reptool.testing import assert_equivalent, randomize


class Applied(torch.autograd.Function):
    """A depthwise convolution that no tracer sees into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, weight, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Nothing is learned here."""
        return grad, None


class Blur(nn.Module):
    """Runs affine operations alone, in an autograd function."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Blur."""
        return Applied.apply(x, self.weight)  # type: ignore[no-any-return]


class Fourier(nn.Module):
    """A depthwise convolution by Fourier transforms, behind a question about the data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if x.data_ptr() == 1:
            return x
        (h, w), size = x.shape[-2:], (x.shape[-2] + 2, x.shape[-1] + 2)
        y = torch.fft.irfft2(torch.fft.rfft2(x, size) * torch.fft.rfft2(self.weight.flip(-1, -2), size), size)
        return y[..., 1 : 1 + h, 1 : 1 + w]


class Choice(nn.Module):
    """One of two convolutions, by the sign of the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Choose."""
        return self.a(x) if x.sum() > 0 else self.b(x)  # type: ignore[no-any-return]


class Between(nn.Module):
    """A convolution, an opaque module, a norm and a shortcut around them."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle, self.bn = nn.Conv2d(3, 4, 3), middle, nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Run."""
        x = self.stem(x).relu()
        return (self.bn(self.middle(x)) + x).relu()


def made(middle: nn.Module) -> nn.Module:
    """Such a model with random values."""
    return randomize(Between(middle), 1).double().eval()


IMAGES = torch.randn(2, 3, 11, 9, dtype=torch.float64)


@pytest.mark.parametrize("affine", [[Fourier], Fourier, "middle", ["mid*", Fourier]])
def test_a_named_module_fuses_with_the_norm_and_the_shortcut_around_it(affine: Any) -> None:
    model = made(Fourier(4))
    deployed = reptool.deploy(model, affine=affine)
    report = reptool.report(deployed)
    assert report.norms == (1, 0)
    (region,) = report.regions
    assert {"impulse", "conv_bn", "branch_add", "shortcut"} <= set(region.rules)
    layer = deployed.get_submodule("middle")
    assert isinstance(layer, nn.Conv2d)
    assert layer.groups == 4  # stays depthwise
    assert_equivalent(model, deployed, IMAGES, dtype=None)
    how = report.impulses["middle"]
    assert "named by the caller" in how
    assert "impulse response" in how
    assert "middle: named" in str(report)
    assert report.to_dict()["impulses"]["middle"] == how
    assert reptool.explain(model, affine=affine).impulses == report.impulses


def test_nobody_has_to_name_what_runs_affine_operations_alone() -> None:
    model = made(Blur(4))
    deployed = reptool.deploy(model)
    assert "affine operations alone" in reptool.report(deployed).impulses["middle"]
    assert not reptool.report(deployed).untraced
    assert_equivalent(model, deployed, IMAGES, dtype=None)


@pytest.mark.parametrize("middle", [Fourier, Choice])
def test_what_looks_at_data_is_not_read_unless_it_is_named(middle: Any) -> None:
    model = made(middle(4))
    deployed = reptool.deploy(model)
    assert not reptool.report(deployed).impulses
    assert "middle" in reptool.report(deployed).untraced
    assert_equivalent(model, deployed, IMAGES, dtype=None)


def test_a_named_module_that_is_not_affine_is_refused_and_its_parts_are_fused() -> None:
    model = made(Choice(4))
    deployed = reptool.deploy(model, affine=[Choice])
    (refusal,) = [r for r in reptool.report(deployed).refusals if r.code is Code.NOT_AFFINE]
    assert "test of" in refusal.sentence
    assert refusal.nodes == ("middle",)
    assert {r.layer for r in reptool.report(deployed).regions} == {"middle.a.0", "middle.b.0"}
    assert_equivalent(model, deployed, IMAGES, dtype=None)
    assert_equivalent(model, deployed, -IMAGES, dtype=None)
    with pytest.raises(RequirementError, match="not-affine"):
        reptool.deploy(model, affine=[Choice], require="no_refusals")


def test_one_layer_that_is_dearer_is_refused() -> None:
    separable = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.Conv2d(16, 16, 1))
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), separable).double().eval()
    report = reptool.report(reptool.deploy(model, affine="2"))
    assert not report.regions
    assert Code.DEARER in {r.code for r in report.refusals}
    forced = reptool.deploy(model, affine="2", force=True)
    assert isinstance(forced[2], nn.Conv2d)  # type: ignore[index]
    assert_equivalent(model, forced, IMAGES, dtype=None)


def test_a_layer_read_at_one_rank_refuses_another() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Blur(4)).eval()
    deployed = reptool.deploy(model, torch.randn(1, 3, 9, 8))
    assert isinstance(deployed[2], nn.Conv2d)  # type: ignore[index]
    with pytest.raises(SpecializedError):
        deployed(torch.randn(3, 9, 8))


def test_a_module_used_or_held_elsewhere_keeps_its_place() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blur, self.bn, self.other = Fourier(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.blur(x)).relu() + self.other(self.blur(x.relu())).relu() + self.blur.weight.sum()

    model = randomize(Twice(), 1).double().eval()
    deployed = reptool.deploy(model, affine=Fourier)
    assert_equivalent(model, deployed, torch.randn(2, 4, 9, 8, dtype=torch.float64), dtype=None)
    assert isinstance(deployed.get_submodule("blur"), Fourier)


def test_hooks_on_a_part_are_kept() -> None:
    model = made(nn.Sequential(Fourier(4), nn.Conv2d(4, 4, 1)))
    seen: list[int] = []
    model.get_submodule("middle.0").register_forward_hook(lambda *_: seen.append(1))
    deployed = reptool.deploy(model, affine="middle")
    assert Code.HOOK in {r.code for r in reptool.report(deployed).refusals}
    assert_equivalent(model, deployed, IMAGES, dtype=None)


def test_names_that_mean_nothing_and_roots_are_said() -> None:
    model = made(Fourier(4))
    with pytest.raises(InputError, match="Choice"):
        reptool.deploy(model, affine=[Choice])
    with pytest.raises(InputError, match="nothing"):
        reptool.deploy(model, affine="nothing")
    report = reptool.report(reptool.deploy(Fourier(4).eval(), affine=Fourier))
    assert [r.code for r in report.refusals] == [Code.UNTRACEABLE]


def test_without_values_nothing_is_read() -> None:
    with torch.device("meta"):
        model = Between(Fourier(4)).eval()
    report = reptool.explain(model, affine=Fourier)
    assert Code.OPAQUE in {r.code for r in report.refusals}


def test_channels_that_nobody_states_are_asked_for() -> None:
    class Any2d(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0 if x.data_ptr() == 1 else F.avg_pool2d(x, 2)

    model = nn.Sequential(Any2d(), nn.ReLU()).eval()
    found = reptool.explain(model, affine=Any2d).refusals
    assert {r.code for r in found} <= {Code.CHANNELS, Code.RANK_UNKNOWN}
    assert found
    image = torch.randn(1, 3, 8, 8)
    assert not [r for r in reptool.explain(model, image, affine=Any2d, force=True).refusals if r.code is Code.CHANNELS]
