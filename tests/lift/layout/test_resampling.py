"""Nearest upsampling in front of convolutions: what is one transposed convolution, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.errors import SpecializedError
from reptool.lift.layout.resampling import repeats
from reptool.refusal import Code
from reptool.testing import randomize
from tests.plan.resolutions.test_joined import deploy

Up = Callable[[Any, Tensor], Tensor]


class Decoder(nn.Module):
    """An activation, something that repeats positions, a convolution and a norm."""

    def __init__(self, up: Up, axes: int = 2, **options: Any) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.own, self.factor, self.mode = up, 2, "nearest"
        self.up = nn.Upsample(scale_factor=2)
        channels, outputs = options.pop("channels", (4, 6))
        self.conv, self.norm = conv(channels, outputs, **{"kernel_size": 3, "padding": 1, **options}), norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.norm(self.conv(self.own(self, x.sigmoid()))).relu()  # type: ignore[no-any-return]


IMAGES = ((2, 4, 6, 5), (1, 4, 1, 1), (3, 4, 2, 9))
WIDE = ((1, 32, 18, 15), (1, 32, 3, 9))
LINES = ((2, 4, 6), (1, 4, 1), (0, 4, 3))
VOLUMES = ((1, 4, 3, 2, 4), (2, 4, 1, 1, 2))


def check(model: nn.Module, shapes: tuple[tuple[int, ...], ...], bare: bool = False) -> Any:
    """Deploys a model, compares it at all shapes, and gives the report."""
    model = randomize(model).double().eval()
    deployed = deploy(model, *(() if bare else (torch.randn(shapes[0], dtype=torch.float64),)))
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    return reptool.report(deployed)


def module(up: nn.Module) -> Up:
    return lambda self, x: up(x)


TAKEN: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "module": (lambda: Decoder(lambda self, x: self.up(x)), IMAGES),
    "function": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=2)), IMAGES),
    "float": (lambda: Decoder(lambda self, x: F.interpolate(x, None, 3.0, "nearest")), IMAGES),
    "each axis its own": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=(1.0, 4.0))), IMAGES),
    "exact": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=5, mode="nearest-exact")), IMAGES),
    "of old": (
        lambda: nn.Sequential(nn.Sigmoid(), nn.UpsamplingNearest2d(scale_factor=2), nn.Conv2d(4, 6, 3)),
        IMAGES[::2],
    ),
    "interleaved": (lambda: Decoder(lambda self, x: x.repeat_interleave(2, 2).repeat_interleave(3, 3)), IMAGES),
    "5x5": (lambda: Decoder(lambda self, x: self.up(x), kernel_size=5, padding=2), IMAGES),
    "dilated": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=4), dilation=2, padding=2), IMAGES),
    "grouped": (lambda: Decoder(lambda self, x: self.up(x), groups=2), IMAGES),
    "unpadded": (lambda: Decoder(lambda self, x: self.up(x), padding=0), IMAGES[::2]),
    "strided": (lambda: Decoder(lambda self, x: self.up(x), stride=2, channels=(32, 32)), WIDE),
    "strided more": (lambda: Decoder(lambda self, x: self.up(x), stride=4, kernel_size=5, channels=(32, 32)), WIDE),
    "a line": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=3), 1), LINES),
    "a line, interleaved": (lambda: Decoder(lambda self, x: torch.repeat_interleave(x, 3, dim=2), 1), LINES),
    "a volume": (lambda: Decoder(lambda self, x: self.up(x), 3), VOLUMES),
    "cropped": (lambda: Decoder(lambda self, x: self.up(x)[:, :, 1:-1, 1:], padding=0, channels=(32, 32)), WIDE),
    "with a norm between": (lambda: Decoder(lambda self, x: self.up(x) * 2), IMAGES),
}


@pytest.mark.parametrize("name", TAKEN)
def test_one_layer_of_fewer_multiplications(name: str) -> None:
    build, shapes = TAKEN[name]
    report = check(build(), shapes)
    (region,) = report.regions
    assert "upsample" in region.rules
    assert region.multiplications[1] < region.multiplications[0]
    if "strided" not in name:
        assert region.kind.startswith("ConvTranspose")


@pytest.mark.parametrize("name", ["module", "function", "a line"])
def test_without_example_inputs(name: str) -> None:
    build, shapes = TAKEN[name]
    assert len(check(build(), shapes, bare=True).regions) == 1


def functional(self: Any, x: Tensor) -> Tensor:
    """A functional layer behind a functional upsampling."""
    return F.conv2d(F.interpolate(x.sigmoid(), scale_factor=self.factor, mode=self.mode), self.conv.weight, None, 1, 1)


LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "fraction": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=1.5)), IMAGES[:1]),
    "smaller": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=0.5)), IMAGES[:1]),
    "bilinear": (lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear")), IMAGES),
    "aligned": (
        lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)), IMAGES
    ),
    "antialias": (
        lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear", antialias=True)), IMAGES
    ),
    "recomputed": (
        lambda: Decoder(lambda self, x: F.interpolate(x, scale_factor=2, recompute_scale_factor=True)), IMAGES
    ),
    "size": (lambda: Decoder(lambda self, x: F.interpolate(x, size=(12, 10))), IMAGES[:2]),
    "size of the input": (
        lambda: Decoder(lambda self, x: F.interpolate(x, size=(2 * x.shape[2], x.shape[3] + 1))), IMAGES
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_left_with_a_reason(name: str) -> None:
    build, shapes = LEFT[name]
    report = check(build(), shapes)
    assert all("upsample" not in r.rules for r in report.regions)
    assert Code.RESAMPLING in {r.code for r in report.refusals}, report.refusals


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_borders_stay(mode: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    report = check(nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2), conv), IMAGES[::2])
    assert Code.BORDER_MODE in {r.code for r in report.refusals}
    assert all("upsample" not in r.rules for r in report.regions)


def test_read_elsewhere_stays() -> None:
    class Twice(Decoder):
        def forward(self, x: Tensor) -> Any:
            up = self.up(x.sigmoid())
            return self.norm(self.conv(up)), up

    model = randomize(Twice(module(nn.Identity()))).double().eval()
    x = torch.randn(IMAGES[0], dtype=torch.float64)
    deployed = deploy(model, x)
    for got, wanted in zip(deployed(x), model(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert all("upsample" not in r.rules for r in reptool.report(deployed).regions)


class Set(Decoder):
    """Factor and mode as settings of the module."""

    def forward(self, x: Tensor) -> Tensor:
        """By a function."""
        return functional(self, x)


@pytest.mark.parametrize(("setting", "value"), [("factor", 3), ("mode", "bilinear")])
def test_settings_are_guarded(setting: str, value: Any) -> None:
    model = randomize(Set(module(nn.Identity()))).eval()
    x = torch.randn(IMAGES[0])
    deployed = deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    setattr(deployed, setting, value)
    with pytest.raises(SpecializedError):
        deployed(x)


def test_the_module_that_was_absorbed_is_loud() -> None:
    deployed: Any = deploy(randomize(TAKEN["module"][0]()).eval(), torch.randn(IMAGES[0]))
    with pytest.raises(SpecializedError):
        deployed.up.scale_factor = 3


@pytest.mark.parametrize("bare", [False, True])
def test_a_value_without_a_batch_means_another_axis(bare: bool) -> None:
    """Torch upsamples the last axis of three; behind it stands a convolution over two."""
    model = nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1)).eval()
    deployed = deploy(model, *(() if bare else (torch.randn(1, 4, 6, 5),)))
    assert reptool.report(deployed).regions
    assert model(torch.randn(4, 6, 5)).shape == (4, 6, 10)
    with pytest.raises(SpecializedError):
        deployed(torch.randn(4, 6, 5))


def test_overflow_in_half_precision_stays() -> None:
    model = nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2), nn.Conv2d(2, 2, 3, padding=1, bias=False)).eval()
    with torch.no_grad():
        model[2].weight.fill_(40_000.0)  # type: ignore[union-attr, operator]
    report = reptool.report(deploy(model.half()))
    assert not report.regions
    assert Code.OVERFLOW in {r.code for r in report.refusals}


def test_what_does_not_gain_stays() -> None:
    """A convolution of one tap and a strided one of few, whose transposed kernels multiply as often."""
    model = nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1))
    assert reptool.report(reptool.deploy(model.eval(), torch.randn(1, 64, 8, 8))).regions
    sized = nn.Sequential(nn.Sigmoid(), nn.ConvTranspose2d(8, 8, 2, 2, bias=False), nn.Conv2d(8, 2, 3, padding=1))
    report = check(sized, ((1, 8, 4, 5),))
    assert all(r.multiplications[1] <= r.multiplications[0] for r in report.regions)


def test_a_layer_that_is_told_its_size_stays() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t, self.c = nn.ConvTranspose2d(4, 4, 3, stride=2, bias=False), nn.Conv2d(4, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            size = [2 * x.shape[2] + 2, 2 * x.shape[3] + 2]
            return self.c(self.t(x.relu(), output_size=size)).relu()  # type: ignore[no-any-return]

    report = check(Told(), IMAGES)
    assert not report.regions
    assert "told what size" in str(report.refusals)


def test_factors_at_which_torch_rounds_stay() -> None:
    model = nn.Sequential(nn.Sigmoid(), nn.Upsample(scale_factor=41), nn.Conv2d(4, 4, 3, padding=1)).eval()
    report = reptool.report(deploy(model))
    assert not report.regions
    assert "rounds to other positions" in str(report.refusals)


def test_the_factors_that_are_read_repeat_positions() -> None:
    for factor in filter(repeats, range(1, 70)):
        for dtype in (torch.float32, torch.float64):
            x = torch.arange(3000 // factor + 60, dtype=dtype)
            wanted = x.repeat_interleave(factor)
            for shape, scale in (((1, 1, -1), (factor,)), ((1, 1, -1, 1), (factor, 1)), ((1, 1, 1, -1), (1, factor))):
                got = F.interpolate(x.reshape(shape), scale_factor=scale)
                assert torch.equal(got.flatten(), wanted), factor
