"""Upsampling brought to the convolution that reads it, and where it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool import Code
from reptool.errors import RegionWarning
from reptool.rules import SplitConcat, UpsampleLater
from reptool.rules.resampling import upsampling as rules
from reptool.testing import assert_equivalent, randomize
from tests.rules.networks import deployed_by, rewritten

X = torch.randn(2, 3, 6, 5)


def decoder(*between: nn.Module, up: nn.Module | None = None, reads: int = 4) -> nn.Module:
    """A layer, an upsampling, what lies between, and a convolution."""
    head = nn.Conv2d(3, 4, 1), nn.Tanh(), up or nn.Upsample(scale_factor=2)
    return randomize(nn.Sequential(*head, *between, nn.Conv2d(reads, 4, 3, padding=1))).eval()


def transposed(model: nn.Module) -> int:
    """How many transposed convolutions a model has."""
    return sum(isinstance(m, nn.ConvTranspose2d) for m in model.modules())


BETWEEN: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: decoder(nn.ReLU()),
    "in place": lambda: decoder(nn.ReLU(inplace=True)),
    "norm and activation": lambda: decoder(nn.BatchNorm2d(4), nn.SiLU()),
    "pointwise": lambda: decoder(nn.Conv2d(4, 8, 1), nn.GELU(), reads=8),
    "dropout": lambda: decoder(nn.Sigmoid(), nn.Dropout2d()),
    "of channels": lambda: decoder(nn.Softmax(1)),
    "by three": lambda: decoder(nn.PReLU(4), up=nn.Upsample(scale_factor=3)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_it_moves_behind_what_treats_every_position_alike(name: str) -> None:
    model = BETWEEN[name]()
    made = deployed_by(model, UpsampleLater(), X)
    assert rewritten(made) == 1
    assert transposed(made) == 1
    assert_equivalent(model, made, X, dtype=None, rtol=1e-4)
    kept = X.clone()
    made(X)
    assert torch.equal(X, kept)


STAYS: dict[str, Callable[[], nn.Module]] = {
    "pooling": lambda: decoder(nn.MaxPool2d(3, 1, 1)),
    "of positions": lambda: decoder(nn.Softmax(2)),
    "group norm": lambda: decoder(nn.GroupNorm(2, 4), nn.ReLU()),
    "average": lambda: decoder(nn.AvgPool2d(3, 1, 1), nn.ReLU()),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_stays_in_front_of_what_does_not(name: str) -> None:
    model = STAYS[name]()
    made = deployed_by(model, UpsampleLater(), X)
    assert rewritten(made) == 0
    assert_equivalent(model, made, X, dtype=None, rtol=1e-4)


class Skip(nn.Module):
    """A decoder with a skip connection."""

    def __init__(self, join: Callable[[Any, Tensor, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.join = join
        self.low, self.high = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
        self.up, self.conv = nn.Upsample(scale_factor=2), nn.Conv2d(12, 4, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The low-resolution map beside the other one."""
        joined = self.join(self, self.low(x).relu(), self.high(z).relu())
        return self.norm(self.conv(joined)).relu()  # type: ignore[no-any-return]


PAIR = torch.randn(2, 3, 6, 5), torch.randn(2, 3, 12, 10)
JOINS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "first": lambda self, x, z: torch.cat([self.up(x), z], 1),
    "last": lambda self, x, z: torch.cat((z, F.interpolate(x, scale_factor=2)), dim=1),
    "of positions": lambda self, x, z: torch.cat([self.up(x), z], -3),
}


def of(model: nn.Module, *rules: Any) -> nn.Module:
    """The model deployed with rules of its own."""
    made: nn.Module = reptool.deploy(model, PAIR, rules=(*reptool.RULES, *rules), flatten=True)
    return made


@pytest.mark.parametrize("name", JOINS)
def test_a_convolution_of_a_concatenation_is_a_sum(name: str) -> None:
    model = randomize(Skip(JOINS[name])).eval()
    made = of(model, SplitConcat())
    assert rewritten(made) == 1
    assert transposed(made) == 1
    torch.testing.assert_close(made(*PAIR), model(*PAIR), rtol=1e-4, atol=1e-5)
    region = next(r for r in reptool.report(made).regions if "upsample" in r.rules)
    assert region.multiplications[1] * 36 == region.multiplications[0] * 16


@pytest.mark.parametrize("name", ["first", "last"])
def test_norms_that_were_absorbed_before_still_run(name: str) -> None:
    model = Skip(JOINS[name])
    model.low = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))  # type: ignore[assignment]
    model = randomize(model).eval()
    made = of(model, SplitConcat())
    assert transposed(made) == 1
    torch.testing.assert_close(made(*PAIR), model(*PAIR), rtol=1e-4, atol=1e-5)


def test_groups_are_refused() -> None:
    made = of(randomize(Skip(JOINS["first"], groups=2)).eval(), SplitConcat())
    assert rewritten(made) == 0
    assert Code.CHANNELS in {r.code for r in reptool.report(made).refusals}


def test_bilinear_upsampling_is_no_site() -> None:
    join = lambda self, x, z: torch.cat([F.interpolate(x, scale_factor=2, mode="bilinear"), z], 1)  # noqa: E731
    made = of(randomize(Skip(join)).eval(), SplitConcat())
    assert rewritten(made) == 0


def test_columns_of_the_wrong_part_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the parts in another order."""
    right = SplitConcat.check

    def wrong(self: SplitConcat, site: Any) -> Any:
        found = right(self, site)
        return found[::-1] if isinstance(found, list) else found

    monkeypatch.setattr(SplitConcat, "check", wrong)
    join = lambda self, x, z: torch.cat([self.up(x), z, z], 1)  # noqa: E731
    model = randomize(Skip(join)).eval()
    model.conv = nn.Conv2d(16, 4, 3, padding=1)  # type: ignore[assignment]
    with pytest.warns(RegionWarning, match="split_concat"):
        made = of(model.eval(), SplitConcat())
    torch.testing.assert_close(made(*PAIR), model(*PAIR), rtol=1e-4, atol=1e-5)


def test_what_reads_several_positions_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: everything is taken for positionwise."""
    monkeypatch.setattr(rules, "is_positionwise", lambda *args: True)
    model = STAYS["pooling"]()
    with pytest.warns(RegionWarning, match="upsample_later"):
        made = deployed_by(model, UpsampleLater(), X)
    assert_equivalent(model, made, X, dtype=None, rtol=1e-4)
