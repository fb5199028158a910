"""Layers side by side with one activation behind each become one layer, where everything about them is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.errors import SpecializedError
from reptool.rules import MergeSiblings
from reptool.testing import assert_equivalent
from tests.rules.networks import deployed_by, images, random, rewritten

Join = Callable[[Tensor, Tensor], Any]


class Side(nn.Module):
    """Two layers of one value, an activation behind each, and what becomes of them."""

    def __init__(self, a: nn.Module, b: nn.Module, one: nn.Module, other: nn.Module, join: Join) -> None:
        super().__init__()
        self.a, self.b, self.one, self.other, self.join = a, b, one, other, join

    def forward(self, x: Tensor) -> Any:
        """Side by side."""
        return self.join(self.one(self.a(x)), self.other(self.b(x)))


def cat(p: Tensor, q: Tensor) -> Tensor:
    return torch.cat([p, q], 1)


def from_behind(p: Tensor, q: Tensor) -> Tensor:
    return torch.cat([p, q], dim=-3)


def apart(p: Tensor, q: Tensor) -> Any:
    return p.sum((2, 3)), q * 2


def both(p: Tensor, q: Tensor) -> Any:
    return torch.cat([p, q], 1), q


def turned(p: Tensor, q: Tensor) -> Tensor:
    return torch.cat([q, p], 1)


def convs(**options: Any) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, **{"kernel_size": 3, "padding": 1, **options})


def side(
    join: Join = cat,
    one: Callable[[], nn.Module] = nn.ReLU,
    other: Callable[[], nn.Module] | None = None,
    **options: Any,
) -> Callable[[], nn.Module]:
    return lambda: Side(*convs(**options), one(), (other or one)(), join)


GOOD = {
    "concatenated": side(),
    "from behind": side(from_behind),
    "apart": side(apart),
    "both": side(both),
    "in another order": side(turned),
    "any activation": side(one=nn.SiLU),
    "one bias": side(bias=False),
}


@pytest.mark.parametrize("case", sorted(GOOD))
def test_they_are_one_layer(case: str) -> None:
    model = random(GOOD[case])
    deployed = deployed_by(model, MergeSiblings(), images())
    assert rewritten(deployed) == 1
    assert [m.out_channels for m in deployed.modules() if isinstance(m, nn.Conv2d)] == [9]
    assert ("cat" in deployed.code) == (case == "in another order")
    assert_equivalent(model, deployed, images(), dtype=None, rtol=1e-5)


def test_linear_layers_on_tokens() -> None:
    model = random(
        lambda: Side(nn.Linear(3, 4), nn.Linear(3, 2), nn.GELU(), nn.GELU(), lambda p, q: torch.cat([p, q], -1))
    )
    deployed = deployed_by(model, MergeSiblings(), torch.randn(2, 5, 3))
    assert rewritten(deployed) == 1
    for shape in ((2, 5, 3), (7, 3), (3,)):
        assert_equivalent(model, deployed, torch.randn(shape), dtype=None, rtol=1e-5)


def test_the_axis_of_a_concatenation_counts() -> None:
    deployed = deployed_by(random(side()), MergeSiblings(), images())
    with pytest.raises(SpecializedError):
        deployed(images()[0])
    model = random(side(from_behind))
    torch.testing.assert_close(deployed_by(model, MergeSiblings(), images())(images()[0]), model(images()[0]))


BAD: dict[str, tuple[Callable[[], nn.Module], Code, str]] = {
    "another activation": (side(other=nn.SiLU), Code.DISTRIBUTE, "different operations"),
    "another slope": (side(one=nn.LeakyReLU, other=lambda: nn.LeakyReLU(0.3)), Code.DISTRIBUTE, "different operations"),
    "mixed": (side(one=lambda: nn.Softmax(1)), Code.DISTRIBUTE, "each value by itself"),
    "another size": (side(kernel_size=1, padding=0), Code.EXTENT, "several geometries"),
    "another border": (side(padding_mode="reflect"), Code.EXTENT, "several geometries"),
    "groups": (
        lambda: Side(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.ReLU(), cat),
        Code.CHANNELS, "groups",
    ),
    "an axis that depends on the rank": (
        lambda: Side(nn.Linear(9, 4), nn.Linear(9, 4), nn.ReLU(), nn.ReLU(), cat), Code.RANK_UNKNOWN, "concatenated",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_others_are_left(case: str) -> None:
    build, code, told = BAD[case]
    model, x = random(build), images(4 if case == "groups" else 3)
    deployed = deployed_by(model, MergeSiblings(), x)
    assert rewritten(deployed) == 0
    refusals = [r for r in reptool.report(deployed).refusals if "merge_siblings" in r.sentence]
    assert [r.code for r in refusals] == [code]
    assert told in refusals[0].sentence
    assert_equivalent(model, deployed, x, dtype=None, rtol=1e-5)
