"""Every refusal code, provoked: it appears, it names the place, and the deployed model is right all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code, Refusal
from reptool.errors import InputError
from reptool.testing import assert_equivalent, randomize

DOCS = Path(__file__).parent.parent / "docs" / "refusals.md"


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A module of a class of its own with this forward."""
    cls = type("Net", (nn.Module,), {"forward": forward, "__module__": __name__})
    module: nn.Module = cls()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def branches(a: nn.Module, b: nn.Module) -> nn.Module:
    """The sum of two branches."""
    return net(lambda self, x: self.a(x) + self.b(x), a=a, b=b)


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise."""
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def images(channels: int = 4, size: int = 10) -> Tensor:
    """Two images, higher than wide."""
    return torch.randn(2, channels, size, size - 2)


class Own(nn.Module):
    """A module for which a rule has been written."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice as much."""
        return 2 * x


@reptool.lifts(Own)
def own(module: nn.Module) -> Refusal:
    """A rule that refuses."""
    return Refusal(Code.RULE, "not today")


@dataclass
class Case:
    """One model that provokes one code.

    Args:
        code: what is to appear.
        build: makes the model.
        where: what the refusal has to name.
        inputs: what the outputs are compared on.
        given: whether `explain` and `deploy` see the inputs too.
        vary: whether the model runs at other sizes.
        options: for `explain` and `deploy`.
    """

    code: Code
    build: Callable[[], nn.Module]
    where: str
    inputs: Callable[[], Tensor] = images
    given: bool = False
    vary: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    id: str = ""


def training(model: nn.Sequential, index: int) -> nn.Module:
    """Put one part into training mode under a parent in eval mode."""
    model.eval()[index].train()
    return model


def hooked(model: nn.Sequential, index: int) -> nn.Module:
    """Watch one part."""
    model[index].register_forward_hook(lambda module, args, output: None)
    return model


def partly_written(self: Any, x: Tensor) -> Tensor:
    """A view of the convolution's output is written before the norm reads all of it."""
    y = self.conv(x)
    y[:, :2].mul_(2.0)
    return self.bn(y)  # type: ignore[no-any-return]


def wide_or_narrow(self: Any, x: Tensor) -> Tensor:
    """Another computation for small images."""
    if x.shape[-1] > 3:
        return torch.relu(self.a(x) + self.b(x))
    return torch.tanh(self.a(x))


def by_rank(self: Any, x: Tensor) -> Tensor:
    """Another computation without a batch."""
    if x.dim() == 4:
        return torch.relu(self.a(x) + self.b(x))
    return torch.tanh(self.a(x))


def one_by_one(self: Any, x: Tensor) -> Tensor:
    """Code that depends on data and uses the parts of a block by themselves."""
    if float(x.sum()) > 1e9:
        return self.block[0](x)  # type: ignore[no-any-return]
    return self.block(x)  # type: ignore[no-any-return]


def remembers(self: Any, x: Tensor) -> Tensor:
    """A forward that does more than computing its output."""
    self.count = 1
    return torch.relu(self.a(x) + self.b(x))


def shape_of_inner(self: Any, x: Tensor) -> Tensor:
    """The shape of the value between two layers is read."""
    y = self.a(x)
    return self.b(y).reshape(y.shape[0], -1)  # type: ignore[no-any-return]


def squashed(self: Any, x: Tensor) -> Tensor:
    """Affine until a million."""
    return x.clamp(-1e6, 1e6) if float(x.sum()) > -1e30 else x


CASES = [
    Case(Code.CHANNELS, lambda: net(lambda self, x: self.a(x) + x, a=conv(1, 8)), "add", lambda: images(1)),
    Case(
        Code.CHANNELS,
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.ReLU()),
        "[0]",
        options={"rules": "avg_pool", "force": True},
        id="pooling of unknown channels",
    ),
    Case(
        Code.LAYOUT,
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4)),
        "[1]",
        lambda: torch.randn(2, 4, 6),
        given=True,
        vary=False,
    ),
    Case(
        Code.STRIDE,
        lambda: branches(conv(4, 4, stride=2), conv(4, 4, 5, padding=0)),
        "add",
        lambda: torch.randn(2, 4, 8, 8),
        vary=False,
    ),
    Case(Code.EXTENT, lambda: branches(conv(4, 4, stride=2), nn.AvgPool2d(2)), "add", lambda: torch.randn(2, 4, 10, 8)),
    Case(
        Code.EXTENT,
        lambda: branches(conv(4, 4), conv(4, 4, padding=0)),
        "add",
        lambda: torch.randn(2, 4, 3, 3),
        vary=False,
        id="one broadcasts",
    ),
    Case(Code.BORDER_MODE, lambda: branches(conv(4, 4), conv(4, 4, padding_mode="reflect")), "add"),
    Case(Code.BORDER_BIAS, lambda: nn.Sequential(conv(4, 16, 1), conv(16, 4)), "[1]"),
    Case(Code.BORDER_READ, lambda: nn.Sequential(conv(4, 16, bias=False), conv(16, 4)), "[1]"),
    Case(Code.BORDER_UNKNOWN, lambda: nn.Sequential(conv(4, 4), nn.ConvTranspose2d(4, 4, 2, 2)), "[1]"),
    Case(Code.RESAMPLING, lambda: nn.Sequential(nn.Upsample(scale_factor=1.5), conv(4, 4)), "[0]"),
    Case(Code.CONSTANT_VALUE, lambda: nn.Sequential(nn.ConstantPad2d(1, 1.0), conv(4, 4, padding=0)), "[1]"),
    Case(Code.TRAINING_NORM, lambda: training(nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), 1), "[1]"),
    Case(Code.NO_STATISTICS, lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4, track_running_stats=False)), "[1]"),
    Case(
        Code.DATA_WEIGHT,
        lambda: net(lambda self, x: F.conv2d(x, self.weight * x.mean()), weight=nn.Parameter(torch.randn(4, 4, 3, 3))),
        "conv2d",
    ),
    Case(
        Code.POOL_GEOMETRY, lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(4, 4, 1)), "[0]"
    ),
    Case(
        Code.POOL_GEOMETRY,
        lambda: nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True), conv(4, 4, 1)),
        "[0]",
        id="ceil_mode",
    ),
    Case(Code.RANK_UNKNOWN, lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), "[1]", lambda: torch.randn(3, 4)),
    Case(
        Code.BROADCAST,
        lambda: net(lambda self, x: self.a(x) * self.scale, a=conv(4, 4), scale=nn.Parameter(torch.randn(1, 1, 10, 8))),
        "mul",
        vary=False,
    ),
    Case(
        Code.DTYPE,
        lambda: net(
            lambda self, x: self.a(x.long() * self.scale), a=conv(4, 4), scale=nn.Parameter(torch.randn(4, 1, 1))
        ),
        "mul",
        given=True,
    ),
    Case(Code.DATA_DEPENDENT, lambda: net(lambda self, x: self.a(x)[:, :, :4], a=conv(4, 4)), "getitem"),
    Case(
        Code.UNREAD,
        lambda: nn.Sequential(nn.ReLU(), nn.InstanceNorm2d(4, track_running_stats=True)),
        "InstanceNorm2d [1]",
    ),
    Case(Code.NO_LAYER, lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), "[0]"),
    Case(
        Code.OPAQUE,
        lambda: nn.Sequential(net(lambda self, x: x.amax((2, 3)))),
        "[0]",
        given=True,
        vary=False,
        options={"affine": "0"},
    ),
    Case(Code.NOT_AFFINE, lambda: nn.Sequential(net(squashed)), "[0]", given=True, options={"affine": "0"}),
    Case(Code.DEARER, lambda: nn.Sequential(conv(4, 4, bias=False), conv(4, 4, padding=0)), "[1]"),
    Case(
        Code.DISTRIBUTE,
        lambda: net(lambda self, x: torch.relu(self.bn(self.a(x) + torch.tanh(x))), a=conv(4, 4), bn=nn.BatchNorm2d(4)),
        "bn",
    ),
    Case(Code.READ_ELSEWHERE, lambda: net(shape_of_inner, a=conv(4, 64, 1, bias=False), b=conv(64, 4)), "a"),
    Case(
        Code.SHARED,
        lambda: net(
            lambda self, x: self.one(self.a(x)) + torch.relu(self.two(self.a(torch.relu(x)))),
            a=conv(4, 4),
            one=nn.BatchNorm2d(4),
            two=nn.BatchNorm2d(4),
        ),
        "'a'",
    ),
    Case(Code.MUTATED, lambda: net(partly_written, conv=conv(4, 4), bn=nn.BatchNorm2d(4)), "mul_"),
    Case(Code.HOOK, lambda: hooked(nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), 1), "1"),
    Case(Code.SPECIALIZED, lambda: net(wide_or_narrow, a=conv(4, 4), b=conv(4, 4, 1)), "forward", given=True),
    Case(Code.SPECIALIZED, lambda: net(by_rank, a=conv(4, 4), b=conv(4, 4, 1)), "forward", id="rank"),
    Case(Code.UNTRACEABLE, lambda: net(one_by_one, block=nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))), "forward"),
    Case(Code.METHOD, lambda: net(remembers, a=conv(4, 4), b=conv(4, 4, 1)), "<root>"),
    Case(Code.EXCLUDED, lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), "'1'", options={"exclude": "1"}),
    Case(
        Code.EXCLUDED,
        lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)),
        "'0'",
        options={"include": ["3", "4"]},
        id="not included",
    ),
    Case(
        Code.TOO_LARGE,
        lambda: branches(conv(4, 4, padding=100, dilation=100), conv(4, 4)),
        "GB",
        options={"force": True},
    ),
    Case(Code.RULE, lambda: nn.Sequential(conv(4, 4), Own(), nn.BatchNorm2d(4)), "rule 'own' for 1: not today"),
    Case(Code.RULE_OFF, lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), "[1]", options={"rules": "sequential"}),
]
OTHERS = {Code.OVERFLOW, Code.NON_FINITE}  # what only the values show: their own tests are below
ELSEWHERE = {Code.BUDGET, Code.UNVERIFIED, Code.NOT_RUN}  # tests/api/test_planning.py, tests/verify/test_methods.py


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.code.value} {c.id}".strip())
def test_a_refusal_says_why_and_where_and_the_rest_is_right(case: Case) -> None:
    model = randomize(case.build(), 1).double()
    if case.code is not Code.TRAINING_NORM:
        model.eval()
    x = case.inputs().double()
    seen = x if case.given else None
    found = [r for r in reptool.explain(model, seen, **case.options).refusals if r.code is case.code]
    assert found, reptool.explain(model, seen, **case.options)
    assert any(case.where in str(r) for r in found), found
    assert all(r.nodes and r.sentence for r in found)
    deployed = reptool.deploy(model, seen, **case.options)
    assert case.code in {r.code for r in reptool.report(deployed).refusals}
    assert_equivalent(model, deployed, x, vary=case.vary, dtype=None)


def half(scale: float) -> nn.Module:
    """Two sites in float16, of which the first one overflows when it is folded."""
    model = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        model[0].weight.mul_(scale)  # type: ignore[operator, union-attr]
        model[1].weight.fill_(scale)
    return model.half()


@pytest.mark.parametrize("verify", [True, False])
def test_a_layer_that_overflows_is_left_and_the_others_are_not(verify: bool) -> None:
    model = half(3e3)
    deployed = reptool.deploy(model, verify=verify)
    (refusal,) = [r for r in reptool.report(deployed).refusals if r.code is Code.OVERFLOW]
    assert "float16" in refusal.sentence
    assert refusal.nodes == ("1",)
    assert [type(m).__name__ for m in deployed] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "Absorbed"]
    assert all(p.isfinite().all() for p in deployed.parameters())
    x = images().half() * 1e-4
    torch.testing.assert_close(deployed(x), model(x), rtol=2e-2, atol=2e-2)
    assert not any(r.code is Code.OVERFLOW for r in reptool.report(reptool.deploy(half(1.0))).refusals)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["3.weight", "4.bias", "4.running_mean"])
@pytest.mark.parametrize("verify", [True, False])
def test_weights_that_are_not_finite_are_an_error_that_names_them(value: float, name: str, verify: bool) -> None:
    model = half(1.0).float()
    with torch.no_grad():
        dict((*model.named_parameters(), *model.named_buffers()))[name].view(-1)[0] = value
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=f"{Code.NON_FINITE.value}.*{name}"):
        reptool.deploy(model, verify=verify, inplace=True)
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in model.state_dict().items())
    assert [type(m).__name__ for m in model][1::3] == ["BatchNorm2d", "BatchNorm2d"]
    left = reptool.deploy(model, verify=verify, exclude="4")
    assert [type(m).__name__ for m in left][1::3] == ["Absorbed", "BatchNorm2d"]


def test_every_code_has_a_case() -> None:
    assert {case.code for case in CASES} | OTHERS | ELSEWHERE == set(Code)


def test_every_code_has_a_line_in_the_documentation() -> None:
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert rows == [f"`{code.value}`" for code in Code]


def test_a_refusal_is_plain_data_with_lines_where_there_are_any() -> None:
    plain = {"code": "stride", "sentence": "strides 1 and 2", "nodes": ["a", "b"]}
    assert Refusal(Code.STRIDE, "strides 1 and 2", ("a", "b")).to_dict() == plain
    lined = Refusal(Code.STRIDE, "strides 1 and 2").at("a", "b", lines=("", "net.py:3"))
    assert lined.to_dict() == {**plain, "lines": ["", "net.py:3"]}
    assert str(lined) == "stride: strides 1 and 2 [a, b (net.py:3)]"


def test_a_refusal_prints_code_sentence_and_places() -> None:
    refusal = Refusal(Code.STRIDE, "strides 1 and 2").at("add", "conv")
    assert str(refusal) == "stride: strides 1 and 2 [add, conv]"
    assert str(Refusal(Code.STRIDE, "strides 1 and 2")) == "stride: strides 1 and 2"
