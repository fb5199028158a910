"""Nothing stays silent: each norm, computed weight and scale that still runs has a refusal that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reptool
from reptool import Code, Refusal
from reptool.testing import assert_equivalent, randomize
from tests.test_refusals import conv, hooked, images, net

BN = nn.BatchNorm2d


def frozen(self: Any, x: Tensor) -> Tensor:
    """A norm of buffers behind an activation."""
    return F.relu(x) * self.scale + self.shift


def before_and_behind(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The value of a convolution goes out beside that of its norm."""
    y = self.conv(x)
    return self.norm(y), y


def two_norms(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two norms of one convolution."""
    y = self.conv(x)
    return self.norm(y), self.other(y)


def two_readers(self: Any, x: Tensor) -> Tensor:
    """A norm that a convolution could take, and something else reads."""
    y = self.norm(F.relu(x))
    return self.conv(y) + torch.tanh(y)


def functional_norm(self: Any, x: Tensor) -> Tensor:
    """A norm by its tensors."""
    n = self.norm
    return F.batch_norm(F.relu(self.conv(x)), n.running_mean, n.running_var, n.weight, n.bias)


def vector() -> nn.Parameter:
    """A constant for each channel."""
    return nn.Parameter(torch.rand(4, 1, 1) + 0.5)


CASES: dict[str, tuple[Callable[[], nn.Module], str, Code, str]] = {
    "norm behind the input": (lambda: nn.Sequential(BN(4), nn.ReLU()), "0", Code.NO_LAYER, "the model's input"),
    "norm before a padded layer": (
        lambda: nn.Sequential(BN(4), conv(4, 4)), "0", Code.BORDER_BIAS, "'1', behind it, cannot take it"
    ),
    "norm between activations": (
        lambda: nn.Sequential(nn.ReLU(), BN(4), nn.GELU()), "1", Code.NO_LAYER, "ReLU in front of it, GELU behind it"
    ),
    "value and norm": (
        lambda: net(before_and_behind, conv=conv(4, 4), norm=BN(4)), "norm", Code.READ_ELSEWHERE, "the model's output"
    ),
    "two norms": (
        lambda: net(two_norms, conv=conv(4, 4), norm=BN(4), other=BN(4)), "norm", Code.READ_ELSEWHERE, "'other'"
    ),
    "norm with two readers": (
        lambda: net(two_readers, conv=conv(4, 4, 1), norm=BN(4)), "norm", Code.READ_ELSEWHERE, "tanh (tests/"
    ),
    "norm behind a sum of activations": (
        lambda: net(lambda self, x: self.norm(x.relu() + x.tanh()), norm=BN(4)), "norm", Code.NO_LAYER, "a sum in front"
    ),
    "norm behind what stays": (
        lambda: hooked(nn.Sequential(conv(4, 4), BN(4)), 0), "1", Code.HOOK, "'0', in front of it, stays as it is"
    ),
    "functional norm": (
        lambda: net(functional_norm, conv=conv(4, 4), norm=BN(4)), "norm", Code.NO_LAYER, "relu in front of it"
    ),
    "layer norm": (lambda: nn.Sequential(nn.ReLU(), nn.LayerNorm(8)), "1", Code.NO_STATISTICS, "by the values"),
    "group norm": (lambda: nn.Sequential(conv(4, 4), nn.GroupNorm(2, 4)), "1", Code.NO_STATISTICS, "by the values"),
    "instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True)), "0", Code.NO_STATISTICS, "by the values"
    ),
    "stored instance norm": (
        lambda: nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
        "1", Code.UNREAD, "there is no rule for InstanceNorm2d",
    ),
    "scale": (lambda: net(frozen, scale=vector(), shift=vector()), "<root>: mul", Code.NO_LAYER, "relu in front of it"),
    "shift": (lambda: net(frozen, scale=vector(), shift=vector()), "<root>: add", Code.NO_LAYER, "a scale in front"),
    "number behind a layer": (
        lambda: net(lambda self, x: (y := self.conv(x)) * torch.sigmoid(y * 3.0), conv=conv(4, 4)),
        "<root>: mul", Code.READ_ELSEWHERE, "'conv', in front of it, is also read by",
    ),
    "computed weight in a call that is not read": (
        lambda: net(lambda self, x: self.layer(x, x), layer=parametrizations.weight_norm(nn.Bilinear(8, 8, 3))),
        "layer", Code.UNREAD, "ParametrizedBilinear",
    ),
    "embedding": (
        lambda: net(
            lambda self, x: self.table(x.abs().long() % 3), table=parametrizations.weight_norm(nn.Embedding(3, 4))
        ),
        "table", Code.UNREAD, "ParametrizedEmbedding",
    ),
}  # fmt: skip


def named(refusals: list[Refusal], place: str) -> list[Refusal]:
    """The refusals that name a place."""
    return [r for r in refusals if place in r.nodes]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_still_runs_is_named_with_the_reason(case: str, given: bool) -> None:
    build, place, code, words = CASES[case]
    model, x = randomize(build(), 1).eval(), images()
    deployed = reptool.deploy(model, x if given else None)
    report = reptool.report(deployed)
    found = named(report.refusals, place)
    assert [r for r in found if r.code is code and words in r.sentence], report.refusals
    assert [str(r) for r in reptool.explain(model, x if given else None).refusals] == [str(r) for r in report.refusals]
    assert_equivalent(model, deployed, x, vary=False)


def test_two_norms_that_are_left_are_both_named() -> None:
    model = net(two_norms, conv=conv(4, 4), norm=BN(4), other=BN(4)).eval()
    report = reptool.explain(model, images())
    assert [r.nodes for r in report.refusals] == [("norm",), ("other",)]
    assert report.norms_left == ["norm", "other"]


def test_what_was_folded_is_not_named() -> None:
    model = nn.Sequential(conv(4, 4), BN(4), nn.ReLU(), conv(4, 4), BN(4)).eval()
    assert reptool.explain(model).refusals == []
    weights = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU()).eval()
    assert reptool.explain(weights).refusals == []
    assert reptool.explain(nn.Sequential(nn.LayerNorm(4, elementwise_affine=False)).eval()).refusals == []


def test_numbers_far_from_any_layer_are_not_sites() -> None:
    model = net(lambda self, x: self.conv(x).relu() * torch.clamp(x + 3, 0, 6) / 6, conv=conv(4, 4)).eval()
    assert reptool.explain(model).refusals == []


@pytest.mark.parametrize("shape", [(1,), (4,), (1, 4), (1, 1), (1, 1, 4), (1, 1, 1)])
def test_constants_of_any_shape_are_folded_or_named(shape: tuple[int, ...]) -> None:
    model = net(
        lambda self, x: self.linear(x) + self.offset, linear=nn.Linear(3, 4), offset=nn.Parameter(torch.rand(shape))
    )
    bare, given = reptool.explain(model.eval()), reptool.explain(model.eval(), torch.randn(2, 3))
    assert bool(bare.regions) != bool(named(bare.refusals, "<root>: add"))
    assert bool(given.regions) != bool(named(given.refusals, "<root>: add"))
    assert {r.code for r in given.refusals} <= {Code.BROADCAST}


def test_a_plan_that_was_given_up_is_the_reason_for_what_it_held() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.shape[-1] > 3:
            return torch.tanh(self.a(x) * self.scale + self.b(x))
        return torch.tanh(self.a(x))

    model = net(forward, a=conv(4, 4), b=conv(4, 4, 1), scale=vector()).eval()
    found = named(reptool.explain(model, images()).refusals, "<root>: mul")
    assert [r.code for r in found] == [Code.SPECIALIZED]
    assert "the truth of gt" in found[0].sentence
