"""A shortcut around layers and activations goes through them where the activations leave what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.blocks import RepNeXtBlock
from reptool.errors import SpecializedError
from reptool.rules import CarryShortcut
from reptool.testing import assert_equivalent
from tests.rules.networks import Around, deployed_by, images, random, rewritten

RULE = CarryShortcut(dearer=True)


def same(channels: int, out: int, size: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that writes as many positions as it reads."""
    return nn.Conv2d(channels, out, size, padding=size // 2, **options)


def two(
    between: Callable[[], nn.Module], shortcut: Callable[[], nn.Module] = nn.Identity, **options: Any
) -> Callable[[], nn.Module]:
    """Two layers, something between them, and a shortcut."""
    return lambda: Around(same(4, 6, **options), between(), same(6, 4, 1), shortcut())


class Written(nn.Module):
    """Layers in a functional forward, summed in one of several ways."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], shortcut: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.one, self.two, self.add, self.shortcut = same(4, 6), same(6, 4), add, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """A chain and its shortcut."""
        return self.add(self.two(self.one(x).relu()), self.shortcut(x))


GOOD: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "relu": (two(nn.ReLU), 2),
    "leaky": (two(lambda: nn.LeakyReLU(0.3)), 2),
    "one slope": (two(nn.PReLU), 2),
    "own slopes": (two(lambda: nn.PReLU(6)), 1),
    "own slopes on both": (two(lambda: nn.PReLU(6), lambda: nn.PReLU(4)), 1),
    "two slopes": (two(nn.PReLU, lambda: nn.PReLU(4)), 1),
    "relu on both": (two(nn.ReLU, nn.ReLU), 1),
    "any on both": (two(nn.SiLU, nn.SiLU), 1),
    "clipped on both": (two(nn.ReLU6, nn.ReLU6), 1),
    "a relu on the shortcut alone": (two(lambda: nn.LeakyReLU(0.3), nn.ReLU), 2),
    "dropped": (two(lambda: nn.Sequential(nn.Dropout(), nn.GELU()), nn.GELU), 1),
    "groups": (two(nn.ReLU, groups=2), 2),
    "borders": (two(nn.ReLU, padding_mode="reflect"), 2),
    "dilated": (lambda: Around(nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.ReLU(), same(4, 4), nn.Identity()), 2),
    "same": (lambda: Around(nn.Conv2d(4, 4, 5, padding="same"), nn.SiLU(), same(4, 4), nn.SiLU()), 1),
    "three layers": (
        lambda: Around(same(4, 4, groups=4), nn.ReLU(), same(4, 8, 1), nn.LeakyReLU(0.5), same(8, 4), nn.Identity()), 2
    ),
    "never negative": (lambda: nn.Sequential(same(4, 4), nn.ReLU(), two(nn.ReLU)(), nn.ReLU()), 1),
    "written otherwise": (lambda: Written(lambda y, s: s + y, lambda x: x * 1), 2),
    "written in place": (lambda: Written(lambda y, s: y.add_(s)), 1),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(GOOD))
def test_the_sum_goes_and_the_layers_carry_it(case: str) -> None:
    build, copies = GOOD[case]
    model = random(build)
    deployed = deployed_by(model, RULE, images(4))
    assert rewritten(deployed) == 1
    assert "add" not in deployed.code
    convs = [m for m in deployed.modules() if isinstance(m, nn.Conv2d)]
    before = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert convs[-1].in_channels == before[-1].in_channels + 4 * copies
    assert_equivalent(model, deployed, images(4), dtype=None, rtol=1e-5)


def test_a_piece_that_is_the_whole_stands_in_front_of_the_first_layer() -> None:
    model = random(lambda: RepNeXtBlock(8, (7,)))
    deployed = deployed_by(model, RULE, images(8))
    assert rewritten(deployed) == 1
    assert_equivalent(model, deployed, images(8), dtype=None, rtol=1e-5)


def test_linear_layers_at_every_rank() -> None:
    model = random(lambda: Around(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4), nn.Identity()))
    deployed = deployed_by(model, RULE, torch.randn(5, 4))
    assert rewritten(deployed) == 1
    for shape in ((5, 4), (2, 5, 4), (4,)):
        assert_equivalent(model, deployed, torch.randn(shape), dtype=None, rtol=1e-5)


def test_slopes_of_channels_hold_for_inputs_with_a_batch() -> None:
    model = random(two(lambda: nn.PReLU(6)))
    deployed = deployed_by(model, RULE, images(4))
    with pytest.raises(SpecializedError):
        deployed(images(4)[0])


BAD: dict[str, tuple[Callable[[], nn.Module], Code, str]] = {
    "any without": (two(nn.SiLU), Code.DISTRIBUTE, "not all of two slopes"),
    "clipped without": (two(nn.ReLU6), Code.DISTRIBUTE, "not all of two slopes"),
    "another one": (two(nn.SiLU, nn.GELU), Code.DISTRIBUTE, "not all of two slopes"),
    "another setting": (two(lambda: nn.ELU(1.0), lambda: nn.ELU(0.5)), Code.DISTRIBUTE, "not all of two slopes"),
    "even": (two(lambda: nn.LeakyReLU(-1.0)), Code.DISTRIBUTE, "lose"),
    "nearly even": (two(lambda: nn.LeakyReLU(-0.99)), Code.DISTRIBUTE, "lose"),
    "mixed": (two(lambda: nn.Softmax(1), lambda: nn.Softmax(1)), Code.DISTRIBUTE, "each value by itself"),
    "along the batch": (two(lambda: nn.Softmax(0), lambda: nn.Softmax(0)), Code.DISTRIBUTE, "each value by itself"),
    "pooled": (
        two(lambda: nn.MaxPool2d(3, 1, 1), lambda: nn.MaxPool2d(3, 1, 1)), Code.DISTRIBUTE, "each value by itself"
    ),
    "in front": (
        lambda: Around(nn.SiLU(), same(4, 6), nn.ReLU(), same(6, 4), nn.Identity()), Code.DISTRIBUTE, "first layer"
    ),
    "strides": (
        lambda: Around(same(4, 6, stride=2), nn.ReLU(), same(6, 4), nn.AvgPool2d(1, 2)), Code.STRIDE, "stride (2, 2)"
    ),
    "sizes": (
        lambda: Around(same(4, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=2), nn.ZeroPad2d(1)), Code.EXTENT, "positions"
    ),
    "no tap": (
        lambda: Around(nn.Conv2d(4, 6, 2, padding=1, dilation=2), nn.ReLU(), same(6, 4), nn.Identity()),
        Code.EXTENT, "no tap",
    ),
    "one for all": (lambda: Around(same(4, 6), nn.ReLU(), same(6, 1), nn.Identity()), Code.CHANNELS, "1 channels"),
    "in place": (lambda: Written(lambda y, s: s.add_(y), lambda x: x), Code.MUTATED, "writes into"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_not_exact_is_left(case: str) -> None:
    build, code, told = BAD[case]
    model = random(build)
    deployed = deployed_by(model, RULE, images(4))
    assert rewritten(deployed) == 0
    refusals = reptool.report(deployed).refusals
    assert [r for r in refusals if r.code is code and told in r.sentence and "carry_shortcut" in r.sentence]
    assert_equivalent(model, deployed, images(4), dtype=None, rtol=1e-5)


def test_more_multiplications_are_asked_for() -> None:
    deployed = deployed_by(random(two(nn.ReLU)), CarryShortcut(), images(4))
    assert rewritten(deployed) == 0
    assert Code.DEARER in {r.code for r in reptool.report(deployed).refusals}
    assert rewritten(deployed_by(random(two(nn.ReLU)), CarryShortcut(), images(4), force=True)) == 1


def published(block: Any, dim: int) -> nn.Sequential:
    """The block as section 6 of the text converts it, from its merged depthwise layer and its pointwise ones."""
    one, two, wide = block.point1, block.point2, block.point1.out_channels
    depthwise = nn.Conv2d(dim, 2 * dim, 7, padding=3, groups=dim)
    first, second = nn.Conv2d(2 * dim, wide + dim, 1), nn.Conv2d(wide + dim, dim, 1)
    merged = reptool.deploy(block.unit, rules=tuple(reptool.RULES), force=True)
    (conv,) = [m for m in merged.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for part in (depthwise, first, second):
            part.weight.zero_()
            part.bias.zero_()  # type: ignore[union-attr]
        nn.init.dirac_(depthwise.weight[::2], groups=dim)
        depthwise.weight[1::2], depthwise.bias[1::2] = conv.weight, conv.bias  # type: ignore[index]
        rows = torch.cat([torch.arange(1, 2 * dim, 2), torch.arange(2 * dim, wide + dim)])
        first.weight[rows, 1::2], first.bias[rows] = one.weight, one.bias  # type: ignore[index]
        nn.init.dirac_(first.weight[: 2 * dim : 2, ::2])
        nn.init.dirac_(second.weight[:, : 2 * dim : 2])
        second.weight[:, rows], second.bias[:] = two.weight, two.bias  # type: ignore[index]
    return nn.Sequential(depthwise, first, block.activation, second).eval()


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, nn.Hardswish])
def test_the_published_conversion_of_the_block(activation: Any) -> None:
    model, x = random(lambda: RepNeXtBlock(8, activation=activation)), images(8)
    rules = (*(r for r in reptool.RULES if r != "sequential"), CarryShortcut())
    deployed = reptool.deploy(model, x, rules=rules, flatten=True, force=True)
    layers = [m for m in deployed.modules() if isinstance(m, nn.Conv2d)]
    theirs = published(model, 8)
    assert [(m.in_channels, m.out_channels, m.groups) for m in layers] == [(8, 16, 8), (16, 40, 1), (40, 8, 1)]
    shapes = [tuple(m.weight.shape) for m in theirs if isinstance(m, nn.Conv2d)]
    assert [tuple(m.weight.shape) for m in layers] == shapes
    assert_equivalent(model, deployed, x, dtype=None, rtol=1e-5)
    assert_equivalent(theirs, deployed, x, dtype=None, rtol=1e-5)
