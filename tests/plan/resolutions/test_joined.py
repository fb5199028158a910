"""What stands side by side at several resolutions, as it is deployed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.layers.side_by_side import SideBySide
from reptool.testing import perturb, randomize


class Decoder(nn.Module):
    """A concatenation with a skip connection, with everything that may be another."""

    def __init__(
        self, axes: int = 2, mode: str = "nearest", told: str = "", factor: Any = 2, width: int = 6, **conv: Any
    ) -> None:
        super().__init__()
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        self.mode, self.told, self.factor = mode, told, factor
        self.conv = kind(12, width, **{"kernel_size": 3, "padding": 1, **conv})
        self.norm = norm(width)

    def up(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.told == "shape":
            return F.interpolate(x, size=skip.shape[2:], mode=self.mode)
        if self.told == "numbers":
            return F.interpolate(x, size=(48, 40), mode=self.mode)
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.conv(torch.cat([self.up(x, skip), skip], 1))).relu()


class First(Decoder):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.conv(torch.cat([skip, self.up(x, skip)], dim=1)))


class Thrice(Decoder):
    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        low = F.interpolate(x[:, :4], scale_factor=2.0)
        return self.norm(self.conv(torch.cat((low, skip, F.interpolate(x[:, 4:].sin(), scale_factor=2.0)), -3)))


class Alone(Decoder):
    def __init__(self, told: str = "shape") -> None:
        super().__init__(told=told)
        self.conv = nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        height, width = skip.shape[-2:]
        return self.norm(self.conv(F.interpolate(x.sin(), (height, width))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Nested(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.up, self.idle, self.block = nn.Upsample(scale_factor=2), nn.Identity(), block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(self.idle(torch.cat([self.up(x), skip], 1)))


def deploy(model: Any, *given: Any, **options: Any) -> Any:
    """What is deployed where a transposed convolution costs as much as another: images are small, channels are few."""
    return reptool.deploy(model, *given, **{"price": reptool.Costs(column=0.0, packed=0.0), **options})


def images(low: tuple[int, ...] = (24, 20), factor: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 8, *low), torch.randn(2, 4, *(n * factor for n in low))


def layers(model: nn.Module) -> list[SideBySide]:
    return [m for m in model.modules() if isinstance(m, SideBySide)]


@pytest.mark.parametrize("build", [
    Decoder, First, Thrice, Alone, lambda: Decoder(told="shape"), lambda: Decoder(told="numbers", width=64),
    lambda: Decoder(mode="nearest-exact"), lambda: Decoder(mode="nearest-exact", told="shape"),
    lambda: Decoder(kernel_size=5, padding=1), lambda: Decoder(kernel_size=3, padding=2, dilation=2),
    lambda: Decoder(bias=False), lambda: Nested(Block()),
    lambda: Nested(nn.Sequential(nn.Conv2d(12, 6, 3, padding=1), nn.BatchNorm2d(6))),
])  # fmt: skip
def test_one_layer_for_each_resolution(build: Any) -> None:
    torch.manual_seed(0)
    model, x = randomize(build()).eval().double(), tuple(v.double() for v in images())
    deployed = deploy(model, x)
    assert len(layers(deployed)) == 1
    (region,) = reptool.report(deployed).regions
    assert "upsample" in region.rules
    assert region.multiplications[1] <= region.multiplications[0]
    others = [x] if getattr(model, "told", "") == "numbers" else [x, tuple(v.double() for v in images((3, 7)))]
    for other in others:
        torch.testing.assert_close(deployed(*other), model(*other), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("axes", [1, 3])
def test_other_numbers_of_axes(axes: int) -> None:
    model = randomize(Decoder(axes)).eval()
    x = images((5, 4, 3)[:axes])
    deployed = deploy(model, x, price=reptool.Costs(layer=0, operation=0, column=0, packed=0))
    assert len(layers(deployed)) == 1
    torch.testing.assert_close(deployed(*x), model(*x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("low", "high"), [((6, 5), (13, 10)), ((1, 1), (1, 1)), ((6, 5), (6, 5))])
@pytest.mark.parametrize("cls", [Decoder, Alone])
def test_a_size_that_is_no_such_multiple_raises(cls: Any, low: tuple[int, int], high: tuple[int, int]) -> None:
    model = randomize(cls(told="shape")).eval()
    deployed = deploy(model, images())
    with pytest.raises(SpecializedError, match="upsampled by"):
        deployed(torch.randn(2, 8, *low), torch.randn(2, 4, *high))


class Read(Decoder):
    def forward(self, x: Tensor, skip: Tensor) -> Any:
        both = torch.cat([self.up(x, skip), skip], 1)
        return self.norm(self.conv(both)), both


class Asked(Decoder):
    def forward(self, x: Tensor, skip: Tensor) -> Any:
        both = torch.cat([self.up(x, skip), skip], 1)
        return self.norm(self.conv(both)) * both.shape[1]


class Written(Decoder):
    def forward(self, x: Tensor, skip: Tensor) -> Any:
        up, skip = self.up(x, skip), skip + 0
        both = torch.cat([up, skip], 1)
        skip.mul_(2)
        x.mul_(3)
        return self.norm(self.conv(both)) + skip.sum() + x.sum()


class Asking(Block):
    def forward(self, x: Any) -> Tensor:
        return super().forward(torch.cat(x, 1) if isinstance(x, (list, tuple)) else x)


@pytest.mark.parametrize("build", [
    lambda: Decoder(mode="bilinear"), lambda: Decoder(factor=1.9), lambda: Decoder(groups=2),
    lambda: Decoder(padding_mode="reflect"), Read, Asked, Written, lambda: Nested(Asking()),
    lambda: Nested(nn.Sequential(nn.Dropout(), Block())),
])  # fmt: skip
def test_left_alone(build: Any) -> None:
    torch.manual_seed(0)
    model = randomize(build()).eval()
    low = (10, 10)
    x = (torch.randn(2, 8, *low), torch.randn(2, 4, *((19, 19) if getattr(model, "factor", 2) == 1.9 else (20, 20))))
    deployed = deploy(model, tuple(v.clone() for v in x))
    assert not layers(deployed)
    got, wanted = deployed(*(v.clone() for v in x)), model(*(v.clone() for v in x))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_hook_on_the_way_would_see_several() -> None:
    model = randomize(Nested(Block())).eval()
    model.block.register_forward_pre_hook(lambda module, args: None)
    assert not layers(deploy(model, images()))


def test_what_runs_at_other_sizes_is_kept() -> None:
    model = randomize(Decoder(told="shape")).eval()
    deployed = deploy(model, images(), keep_fallback=True)
    x = torch.randn(2, 8, 6, 5), torch.randn(2, 4, 13, 11)
    torch.testing.assert_close(deployed(*x), model(*x), rtol=1e-4, atol=1e-5)


def test_changed_afterwards_it_agrees_or_raises() -> None:
    model = randomize(Nested(Block())).eval()
    assert sum(perturb(model, deploy(model, images()), images(), tries=60).raised.values()) < 60


def test_off_by_its_rule() -> None:
    rules = tuple(r for r in reptool.RULES if r != "upsample")
    assert not layers(deploy(randomize(Decoder()).eval(), images(), rules=rules))


def test_deployed_again_it_stays() -> None:
    first = deploy(randomize(Decoder()).eval(), images())
    again = deploy(first, images())
    assert [type(m) for m in again.modules()] == [type(m) for m in first.modules()]


def test_multiplications_of_a_three_by_three() -> None:
    (region,) = reptool.report(deploy(randomize(Decoder()).eval(), images())).regions
    low, high = 2 * 24 * 20 * 6 * 16 * 8, 2 * 48 * 40 * 6 * 9 * 4
    assert region.multiplications == (2 * 48 * 40 * 6 * 9 * 12, low + high)


@pytest.mark.parametrize("told", ["", "shape"])
def test_pointwise_stands_in_front_of_the_upsampling(told: str) -> None:
    model = Decoder(told=told)
    model.conv, model.norm = nn.Conv2d(320, 64, 1), nn.BatchNorm2d(64)
    model = randomize(model).eval().double()
    x = torch.randn(1, 256, 10, 9).double(), torch.randn(1, 64, 20, 18).double()
    deployed = deploy(model, x)
    low, high = layers(deployed)[0].parts
    assert isinstance(low[1], nn.Upsample)  # type: ignore[index]
    assert isinstance(high, nn.Conv2d)
    (region,) = reptool.report(deployed).regions
    assert region.multiplications[1] == 64 * (10 * 9 * 256 + 20 * 18 * 64)
    torch.testing.assert_close(deployed(*x), model(*x), rtol=1e-10, atol=1e-10)
