"""Pointwise layers where positions are fewest: in front of poolings, behind which they stood, and of upsampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.errors import SpecializedError
from reptool.refusal import Code
from reptool.testing import randomize


class Net(nn.Module):
    """An activation, and operations of its own."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.own = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        """What it was given."""
        return self.own(self, x.sigmoid())


def chain(*parts: nn.Module) -> nn.Module:
    """One part after the other."""
    return nn.Sequential(nn.Sigmoid(), *parts, nn.Sigmoid())


SMALL = reptool.Costs(1e4, 2.0, 1.0, 1.0, 1, 0.0, 1e4, 2.0, 0.0, 1.0)
"""A price by multiplications for layers that are small, as those of the tests are."""


def deployed(model: nn.Module, *shapes: tuple[int, ...], **options: Any) -> tuple[Any, Any]:
    """A model and its report, compared at all shapes."""
    model = randomize(model).double().eval()
    made = reptool.deploy(model, torch.randn(shapes[0], dtype=torch.float64), price=SMALL, **options)
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(made(x), model(x), rtol=1e-9, atol=1e-9)
    return made, reptool.report(made)


def one(i: int = 16, o: int = 8, axes: int = 2, **options: Any) -> nn.Module:
    """A pointwise convolution."""
    made: nn.Module = getattr(nn, f"Conv{axes}d")(i, o, 1, **options)
    return made


IMAGES = ((2, 16, 12, 16), (1, 16, 9, 21), (1, 16, 40, 8))
Build = Callable[[], nn.Module]
MOVED: dict[str, tuple[Build, tuple[tuple[int, ...], ...]]] = {
    "transition": (lambda: chain(nn.BatchNorm2d(16), nn.ReLU(), one(), nn.AvgPool2d(2)), IMAGES),
    "overlapping": (lambda: chain(one(), nn.AvgPool2d(3, 2)), IMAGES),
    "adaptive": (lambda: chain(one(), nn.AdaptiveAvgPool2d(3)), IMAGES),
    "global": (lambda: chain(one(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES),
    "norm between": (lambda: chain(one(bias=False), nn.BatchNorm2d(8), nn.AvgPool2d(2)), IMAGES),
    "norm behind": (lambda: chain(one(), nn.AvgPool2d(2), nn.BatchNorm2d(8)), IMAGES),
    "grouped": (lambda: chain(one(groups=4), nn.AvgPool2d(4)), IMAGES),
    "nearest": (lambda: chain(nn.Upsample(scale_factor=2), one()), IMAGES),
    "bilinear": (lambda: chain(nn.Upsample(scale_factor=2, mode="bilinear"), one()), IMAGES),
    "aligned": (lambda: chain(nn.UpsamplingBilinear2d(scale_factor=3), one(), nn.BatchNorm2d(8)), IMAGES),
    "bicubic": (lambda: chain(nn.Upsample(scale_factor=1.5, mode="bicubic"), one()), IMAGES),
    "to a size": (lambda: chain(nn.Upsample(size=(96, 100)), one()), IMAGES),
    "smaller": (lambda: chain(one(), nn.Upsample(scale_factor=0.5, mode="bilinear")), IMAGES),
    "function": (
        lambda: Net(lambda self, x: self.a(F.interpolate(x, scale_factor=4, mode="bilinear")), a=one()), IMAGES
    ),
    "pooling function": (lambda: Net(lambda self, x: F.adaptive_avg_pool2d(self.a(x), (2, 1)).relu(), a=one()), IMAGES),
    "chain": (
        lambda: chain(nn.AvgPool2d(2), one(), nn.BatchNorm2d(8), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)), IMAGES
    ),
    "a line": (lambda: chain(one(axes=1), nn.AvgPool1d(4)), ((2, 16, 32), (1, 16, 7))),
    "a volume": (lambda: chain(nn.Upsample(scale_factor=2, mode="trilinear"), one(axes=3)), ((1, 16, 5, 4, 6),)),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_fewer_multiplications_and_equal_outputs(name: str) -> None:
    build, shapes = MOVED[name]
    made, report = deployed(build(), *shapes)
    region = next(r for r in report.regions if "resample" in r.rules)
    assert region.multiplications[1] < region.multiplications[0]
    again = reptool.deploy(made, torch.randn(shapes[0], dtype=torch.float64))
    assert str(again) == str(made)


def test_where_it_stands_is_printed_and_plain() -> None:
    made, report = deployed(chain(one(), nn.AvgPool2d(2)), *IMAGES)
    (region,) = report.regions
    assert region.kind == "AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=0) -> Conv2d(16, 8, 1x1)"
    assert region.multiplications == (2 * 16 * 8 * 192, 2 * 16 * 8 * 48)
    assert isinstance(made[1][0], nn.AvgPool2d)
    assert isinstance(made[1].conv, nn.Conv2d)
    assert report.layers == (1, 1)


def test_the_sizes_that_were_shown_decide() -> None:
    """Nothing is gained by a pooling to as many positions as there are."""
    images = ((2, 16, 7, 7), (1, 16, 9, 9))
    _, report = deployed(chain(one(), nn.AdaptiveAvgPool2d(7)), *images)
    assert not report.regions
    _, report = deployed(chain(one(), nn.AdaptiveAvgPool2d(7)), *images[::-1])
    assert len(report.regions) == 1


LEFT: dict[str, Build] = {
    "in the right order": lambda: chain(nn.AvgPool2d(2), one()),
    "head": lambda: chain(one(), nn.Upsample(scale_factor=2, mode="bilinear")),
    "counted padding": lambda: chain(one(), nn.AvgPool2d(3, 2, 1)),
    "own divisor": lambda: chain(one(), nn.AvgPool2d(2, divisor_override=3)),
    "maximum": lambda: chain(one(), nn.MaxPool2d(2)),
    "3x3": lambda: chain(nn.Conv2d(16, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2)),
    "padded": lambda: chain(one(padding=1), nn.AdaptiveAvgPool2d(2)),
    "activation": lambda: chain(one(), nn.ReLU(), nn.AvgPool2d(2)),
    "functional layer": lambda: Net(lambda self, x: F.adaptive_avg_pool2d(F.conv2d(x, self.a.weight), 1), a=one()),
    "size of a value": lambda: Net(lambda self, x: self.a(F.interpolate(x, (x.shape[2] * 2, 40))), a=one()),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name: str) -> None:
    _, report = deployed(LEFT[name](), *IMAGES)
    assert all("resample" not in r.rules for r in report.regions)


def both(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.a(x)
    return y, F.adaptive_avg_pool2d(y, 1)


def measured(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return F.adaptive_avg_pool2d(y, 1) * y.shape[2]


def twice(self: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(self.a(x), 1) + self.a(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [both, measured, twice])
def test_what_is_read_elsewhere_stays(forward: Callable[[Any, Tensor], Any]) -> None:
    _, report = deployed(Net(forward, a=one()), *IMAGES)
    assert not report.regions


def test_forced_poolings_alone_are_convolutions_of_their_own() -> None:
    made = reptool.deploy(chain(nn.AvgPool2d(2), nn.Sigmoid()).eval(), torch.randn(IMAGES[0]), force=True)
    assert any(isinstance(m, nn.Conv2d) for m in made.modules())


def test_a_rule_that_is_off() -> None:
    rules = tuple(r for r in reptool.RULES if r != "resample")
    _, report = deployed(chain(one(), nn.AdaptiveAvgPool2d(1)), *IMAGES, rules=rules)
    assert not report.regions
    assert Code.RULE_OFF in {r.code for r in report.refusals}


def test_what_was_moved_is_loud() -> None:
    made, _ = deployed(chain(one(), nn.AdaptiveAvgPool2d(2)), *IMAGES)
    with pytest.raises(SpecializedError):
        made[2].output_size = 3
    with pytest.raises(SpecializedError):
        made[2].register_forward_hook(lambda *args: None)
