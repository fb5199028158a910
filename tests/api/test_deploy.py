"""`deploy`, `explain` and `report`: every argument, every promise, every bad input."""

from __future__ import annotations

import copy
import json
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import reptool
from reptool import RULES, Code
from reptool.blocks import DiverseBranchBlock, Parallel, RepNeXtUnit, RepVGGBlock
from reptool.errors import (
    FoldedNormWarning,
    InputError,
    RegionWarning,
    ReptoolError,
    RequirementError,
    UnsupportedModelError,
    VerificationError,
)
from reptool.testing import assert_equivalent, count_operations, randomize


class Net(nn.Module):
    """A stem, two blocks and a head, with a second input that is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(RepVGGBlock(8, 8), RepVGGBlock(8, 8))
        self.head = nn.Linear(8, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        """Everything but the head."""
        return self.layer1(self.stem(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """Class scores of (N, 3, H, W)."""
        return self.head(self.forward_features(x).mean((2, 3))).tanh() * scale  # type: ignore[no-any-return]


class Sum(nn.Module):
    """Two branches, added."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        """Both of x."""
        return self.a(x) + self.b(x)  # type: ignore[no-any-return]


class Cat(Sum):
    """Two branches, concatenated."""

    def forward(self, x: Tensor) -> Tensor:
        """Both of x."""
        return torch.cat([self.a(x), self.b(x)], 1)


class Scaled(nn.Module):
    """A convolution and a scale per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = conv(4, 4), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scaled."""
        return self.conv(x) * self.gamma  # type: ignore[no-any-return]


class Cropped(nn.Module):
    """A convolution of which the border is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Cropped."""
        return self.conv(x)[:, :, 1:-1, 1:-1]  # type: ignore[no-any-return]


class Last(nn.Module):
    """A pointwise convolution and a linear layer on channels-last values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = conv(4, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Channels last."""
        return self.linear(self.conv(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def conv(i: int, o: int, k: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the size unless told otherwise."""
    return nn.Conv2d(i, o, k, **{"padding": k // 2, **options})


def ready(model: nn.Module, seed: int = 0) -> Any:
    """In eval mode, with statistics as after training."""
    return randomize(model, seed).eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether nothing changed."""
    now = model.state_dict()
    return list(now) == list(before) and all(
        torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in now.items()
    )


def same(model: Any, deployed: Any, x: Tensor, **options: Any) -> None:
    """Equal up to the rounding of float32 weights, at many sizes."""
    assert_equivalent(model, deployed, x, rtol=1e-6, **options)


def images() -> Tensor:
    """Two images, higher than wide."""
    return torch.randn(2, 3, 12, 10)


# --- deploy ---------------------------------------------------------------------------------------------------------
def test_the_result_is_the_users_model_and_the_input_is_untouched() -> None:
    model = ready(Net())
    before, x = state(model), images()
    deployed = reptool.deploy(model)
    assert isinstance(deployed, Net)
    assert type(deployed).__name__ == "Net"
    assert same_state(model, before)
    assert not deployed.training
    names = {n.rpartition(".")[0] for n in deployed.state_dict()} - {n.rpartition(".")[0] for n in before}
    assert not names, "every layer that still exists has the name it had"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    ran = count_operations(deployed, x)
    assert (ran["convolution"], ran["batch norm"], ran["addition"]) == (3, 0, 0)
    same(model, deployed, x)
    same(model.forward_features, deployed.forward_features, x, dtype=None)


def test_inplace_changes_the_model_itself() -> None:
    model, x = ready(Net()), images()
    expected = model(x)
    assert reptool.deploy(model, x, inplace=True) is model
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 3
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert reptool.report(model).model_error is not None
    other = ready(Net())
    assert reptool.deploy(other, inplace=True) is other
    assert sum(isinstance(m, nn.Conv2d) for m in other.modules()) == 3
    with pytest.raises(InputError, match="choose one"):
        reptool.deploy(ready(Net()), inplace=True, flatten=True)


def test_without_verification_nothing_is_measured_and_the_bits_are_the_same() -> None:
    model = ready(Net())
    checked, unchecked = reptool.deploy(model), reptool.deploy(model, verify=False)
    assert all(r.error is not None and r.error <= 1e-10 and r.sizes for r in reptool.report(checked).regions)
    assert all(r.error is None and r.error_cast is None for r in reptool.report(unchecked).regions)
    assert same_state(unchecked, state(checked))


@pytest.mark.parametrize(
    "inputs",
    [images(), (images(),), [images()], (images(), 1.0), {"x": images()}, {"x": images(), "scale": 1.0}],
    ids=["tensor", "tuple", "list", "two", "dict", "keyword"],
)
def test_example_inputs_of_every_form(inputs: Any) -> None:
    model = ready(Net())
    deployed = reptool.deploy(model, inputs)
    error = reptool.report(deployed).model_error
    assert error is not None
    assert error[0] < 1e-5
    same(model, deployed, images())
    assert len(reptool.explain(model, inputs).regions) == 3


def test_example_inputs_are_not_written_to() -> None:
    class Writes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x += 1.0
            return super().forward(x)

    x = images()
    kept = x.clone()
    reptool.deploy(ready(Writes(conv(3, 4), nn.BatchNorm2d(4))), x)
    assert torch.equal(x, kept)


def test_two_runs_give_the_same_bits_and_deploying_twice_changes_nothing() -> None:
    model, x = ready(nn.Sequential(DiverseBranchBlock(3, 8), nn.ReLU(), RepVGGBlock(8, 8))), images()
    one, other = reptool.deploy(model), reptool.deploy(model)
    assert same_state(one, state(other))
    again = reptool.deploy(one)
    assert same_state(again, state(one))
    assert torch.equal(again(x), one(x))
    assert str(again) == str(one)
    assert len(reptool.report(again).regions) == len(reptool.report(one).regions) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dtype_and_memory_format_are_kept(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = ready(Net()).to(dtype).to(memory_format=layout)
    deployed = reptool.deploy(model)
    assert {p.dtype for p in deployed.parameters()} == {dtype}
    convolutions = [m for m in deployed.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 3
    assert all(m.weight.is_contiguous(memory_format=layout) for m in convolutions)
    x = images().to(dtype)
    with torch.no_grad():
        error = (deployed(x) - model(x)).abs().max()
    assert float(error) <= 64 * torch.finfo(dtype).eps


def test_mixed_precision_keeps_each_layers_dtype() -> None:
    model = ready(nn.Sequential(conv(3, 4).to(torch.bfloat16), nn.BatchNorm2d(4)))
    deployed = reptool.deploy(model)
    assert [p.dtype for p in deployed.parameters()] == [torch.bfloat16, torch.bfloat16]


def test_what_people_do_with_the_result() -> None:
    model, x = ready(Net()), images()
    deployed = reptool.deploy(model, x)
    expected = deployed(x)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(x), expected)
        assert isinstance(other, Net)
        assert len(reptool.report(other).regions) == 3
    exported = torch.export.export(
        deployed,
        (x,),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},),
    )
    wider = torch.randn(3, 3, 20, 17)
    torch.testing.assert_close(exported.module()(wider), deployed(wider))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(deployed, x)(wider), deployed(wider))
    torch.testing.assert_close(torch.compile(deployed, backend="eager")(x), expected)
    torch.testing.assert_close(copy.deepcopy(deployed).double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)
    assert copy.deepcopy(deployed).half().head.weight.dtype is torch.float16
    with pytest.warns(FoldedNormWarning, match="7 norms"):
        deployed.train()
    optimizer = torch.optim.SGD(deployed.parameters(), 0.1)
    deployed(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum()) for p in deployed.parameters())
    optimizer.step()
    assert not torch.equal(deployed(x), expected)


def test_a_checkpoint_of_the_original_is_refused_and_one_of_the_result_is_loaded() -> None:
    model = ready(Net())
    deployed = reptool.deploy(model)
    with pytest.raises(ReptoolError, match="absorbed"):
        deployed.load_state_dict(model.state_dict(), strict=False)
    other = reptool.deploy(ready(Net(), 1))
    other.load_state_dict(deployed.state_dict())
    assert same_state(other, state(deployed))


def test_one_graph_refuses_a_checkpoint_of_the_original_too() -> None:
    model = ready(Net())
    flat = reptool.deploy(model, images(), flatten=True)
    with pytest.raises(ReptoolError, match="absorbed"):
        flat.load_state_dict(model.state_dict(), strict=False)
    flat.load_state_dict(flat.state_dict())


def test_layers_made_in_inference_mode_can_be_trained() -> None:
    model, x = ready(Net()), images()
    with torch.inference_mode():
        deployed = reptool.deploy(model, x)
    deployed(x).square().sum().backward()
    assert all(p.grad is not None for p in deployed.parameters())


def test_flatten_gives_one_graph() -> None:
    model, x = ready(Net()), images()
    flat = reptool.deploy(model, x, flatten=True)
    assert isinstance(flat, torch.fx.GraphModule)
    calls = [n for n in flat.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(flat.get_submodule(str(n.target)), nn.Conv2d) for n in calls) == 3
    assert not any(isinstance(m, nn.BatchNorm2d) for m in flat.modules())
    same(model, flat, x)
    assert len(reptool.report(flat).regions) == 3


# --- selecting ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ("stem", None, ["layer1.0", "layer1.1"]),
        ("layer1.*", None, ["stem"]),
        (["stem.0", "stem.1"], None, ["layer1.0", "layer1.1"]),
        (None, "layer1.1", ["layer1.1"]),
        (None, ["stem.1", "layer1.0"], ["layer1.0", "stem"]),
        ("layer1", "layer1.0", ["layer1.0", "stem"]),
        (None, None, []),
        (None, "*", ["layer1.0", "layer1.1", "stem"]),
    ],
)
def test_include_and_exclude_take_patterns_of_paths(include: Any, exclude: Any, left: list[str]) -> None:
    model = ready(Net())
    deployed = reptool.deploy(model, include=include, exclude=exclude)
    norms = {
        ".".join(n.split(".")[: 1 if n.startswith("stem") else 2])
        for n, m in deployed.named_modules()
        if isinstance(m, nn.BatchNorm2d)
    }
    assert sorted(norms) == left
    before = model.state_dict()
    for path in left:
        kept = {k: v for k, v in deployed.state_dict().items() if k.startswith(f"{path}.")}
        assert kept
        assert all(torch.equal(v, before[k]) for k, v in kept.items())
    same(model, deployed, images())


class Applied(torch.autograd.Function):
    """A layer inside of an autograd function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        """Run it."""
        return layer(x)  # type: ignore[no-any-return]


class Unread(nn.Module):
    """A layer that no tracer sees."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Run it."""
        return Applied.apply(x, self.layer)  # type: ignore[no-any-return]


class Apart(nn.Module):
    """A norm behind the sum of two layers that read different values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = conv(4, 4), conv(4, 4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """The sum, normalized."""
        return self.bn(self.a(x) + self.b(torch.tanh(x)))  # type: ignore[no-any-return]


RULE_CASES: dict[str, tuple[Callable[[], nn.Module], list[str], bool]] = {
    "conv_bn": (lambda: nn.Sequential(conv(4, 4), nn.BatchNorm2d(4)), [], False),
    "bn_conv": (lambda: nn.Sequential(nn.BatchNorm2d(4), conv(4, 4, padding=0)), [], False),
    "branch_add": (lambda: Sum(conv(4, 4), conv(4, 4)), [], False),
    "branch_concat": (lambda: Cat(conv(4, 4), conv(4, 8)), [], False),
    "kernel_size": (lambda: Sum(conv(4, 4), conv(4, 4, 1)), ["branch_add"], False),
    "sequential": (lambda: nn.Sequential(conv(4, 64, 1), conv(64, 4, padding=0)), [], False),
    "shortcut": (lambda: Sum(conv(4, 4, 1), nn.Identity()), ["branch_add"], False),
    "avg_pool": (lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.ReLU(), conv(4, 4)), [], True),
    "scale": (Scaled, [], False),
    "padding": (lambda: nn.Sequential(nn.ZeroPad2d(1), conv(4, 4, padding=0)), [], False),
    "slice": (Cropped, [], False),
    "linear": (Last, ["sequential"], False),
    "weights": (lambda: nn.Sequential(weight_norm(conv(4, 4)), nn.ReLU()), [], False),
    "impulse": (lambda: nn.Sequential(conv(4, 4), nn.ReLU(), Unread(conv(4, 4))), [], False),
    "distribute": (Apart, ["conv_bn"], False),
    "resample": (lambda: nn.Sequential(nn.ReLU(), conv(4, 4, 1, padding=0), nn.AdaptiveAvgPool2d(2)), [], False),
    "upsample": (lambda: nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), conv(4, 4)), [], False),
}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_by_its_name_alone(rule: str) -> None:
    build, companions, force = RULE_CASES[rule]
    model = ready(build())
    deployed = reptool.deploy(model, rules=[rule, *companions], force=force)
    regions = reptool.report(deployed).regions
    assert [set(r.rules) for r in regions] == [{rule, *companions}] * (2 if rule == "distribute" else 1)
    same(model, deployed, torch.randn(2, 4, 12, 10), vary=rule != "slice")  # nothing is left of a cropped tiny image
    others = reptool.explain(model, rules=[r for r in RULES if r != rule], force=force)
    assert not any(rule in r.rules for r in others.regions)
    off = [r for r in others.refusals if r.code is Code.RULE_OFF]
    assert any(repr(rule) in r.sentence for r in off)
    assert not reptool.explain(model, rules=[], force=force).regions


def test_every_rule_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "index.md").read_text().partition("## Rules")[2]
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(RULES)


# --- force ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("norm", "x"),
    [
        (nn.BatchNorm1d(4), torch.randn(3, 4, 9)),
        (nn.BatchNorm2d(4), torch.randn(3, 4, 9, 8)),
        (nn.BatchNorm3d(4, affine=False), torch.randn(2, 4, 5, 6, 7)),
    ],
    ids=["1d", "2d", "3d"],
)
def test_a_norm_alone_becomes_a_convolution_when_it_is_forced_to(norm: nn.Module, x: Tensor) -> None:
    model = ready(nn.Sequential(nn.ReLU(), norm, nn.ReLU()))
    assert not reptool.report(reptool.deploy(model, x, rules=["bn_conv"])).regions
    deployed = reptool.deploy(model, x, rules=["bn_conv"], force=True)
    made = deployed[1]  # type: ignore[index]
    assert isinstance(made, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    assert (made.groups, made.weight.shape[2:].numel(), made.weight.dtype) == (4, 1, torch.float32)
    same(model, deployed, x)
    assert not reptool.explain(model, x, rules=["avg_pool"], force=True).regions


@pytest.mark.parametrize(
    ("pool", "x"),
    [
        (nn.AvgPool1d(3, 2, 1), torch.randn(2, 4, 11)),
        (nn.AvgPool2d((2, 3), (2, 1), (1, 0)), torch.randn(2, 4, 9, 8)),
        (nn.AvgPool2d(2, divisor_override=3), torch.randn(2, 4, 9, 8)),
        (nn.AvgPool3d(2), torch.randn(2, 4, 6, 6, 7)),
    ],
    ids=["1d", "2d", "divisor", "3d"],
)
def test_an_average_pooling_alone_becomes_a_convolution_when_it_is_forced_to(pool: nn.Module, x: Tensor) -> None:
    model = nn.Sequential(nn.ReLU(), pool, nn.ReLU()).eval()
    assert not reptool.report(reptool.deploy(model, x)).regions
    deployed = reptool.deploy(model, x, rules=["avg_pool"], force=True)
    made = deployed[1]  # type: ignore[index]
    assert isinstance(made, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    assert (made.groups, made.bias, made.stride) == (
        4,
        None,
        tuple(s for s in (pool.stride if isinstance(pool.stride, tuple) else (pool.stride,) * (x.dim() - 2))),
    )  # type: ignore[arg-type, union-attr]
    same(model, deployed, x)


def test_a_forced_convolution_has_the_dtype_of_the_model_around_it() -> None:
    model = ready(nn.Sequential(conv(3, 4, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.ReLU())).to(torch.bfloat16)
    deployed = reptool.deploy(model, rules="avg_pool", force=True)
    assert {p.dtype for p in deployed.parameters()} == {torch.bfloat16}
    assert isinstance(deployed[2], nn.Conv2d)  # type: ignore[index]


def test_force_takes_the_fewest_operations() -> None:
    unit, x = ready(RepNeXtUnit(8)), torch.randn(2, 8, 12, 10)
    assert count_operations(reptool.deploy(unit, price=reptool.Costs(layer=0, operation=0)), x)["convolution"] == 3
    assert count_operations(reptool.deploy(unit, force=True), x)["convolution"] == 1
    separable = ready(nn.Sequential(conv(8, 8, groups=8), conv(8, 4, 1)))
    assert count_operations(reptool.deploy(separable, force=True), x)["convolution"] == 1
    same(separable, reptool.deploy(separable, force=True), x)
    assert not reptool.explain(ready(nn.Sequential(conv(8, 8), nn.ReLU())), force=True).regions


def test_rules_are_forced_by_name_without_the_others() -> None:
    net, x = ready(nn.Sequential(Wide(), conv(8, 4, 1))), torch.randn(2, 8, 60, 61)
    assert count_operations(reptool.deploy(net), x)["convolution"] == 3
    names = ("branch_add", "kernel_size")
    for force, left in ((True, 1), (names, 2), ("branch_add", 3), ("sequential", 3), ((), 3)):
        deployed = reptool.deploy(net, force=force)
        assert count_operations(deployed, x)["convolution"] == left, force
        same(net, deployed, x)
    (region,) = reptool.explain(net, force=names).regions
    assert {*names} <= set(region.rules)
    assert region.price[1] > region.price[0]
    alone = ready(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU()))
    assert [r.rules for r in reptool.explain(alone, x, force="avg_pool").regions] == [["avg_pool"]]
    assert [r.rules for r in reptool.explain(alone, x, force="bn_conv").regions] == [["bn_conv"]]
    with pytest.raises(InputError, match="force was given 'branches'; give True, or names of conv_bn"):
        reptool.deploy(net, force="branches")


class Wide(nn.Module):
    """Depthwise kernels that are long along one axis each."""

    def __init__(self) -> None:
        super().__init__()
        self.tall = nn.Conv2d(8, 8, (51, 3), padding=(25, 1), groups=8)
        self.flat = nn.Conv2d(8, 8, (3, 51), padding=(1, 25), groups=8)

    def forward(self, x: Tensor) -> Tensor:
        """Their sum."""
        return self.tall(x) + self.flat(x)


# --- price ----------------------------------------------------------------------------------------------------------
class Joined(nn.Module):
    """Two depthwise layers of one value, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = (conv(channels, channels, groups=channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        return torch.cat([self.one(x), self.other(x)], 1)


def depthwise(kernel: tuple[int, int], padding: tuple[int, int] = (0, 0)) -> nn.Conv2d:
    return nn.Conv2d(64, 64, kernel, padding=padding, groups=64)


@pytest.mark.parametrize(
    ("model", "merges"),
    [
        (lambda: RepNeXtUnit(64), True),
        (lambda: nn.Sequential(depthwise((1, 5), (0, 2)), depthwise((5, 1))), True),
        (lambda: nn.Sequential(depthwise((3, 3), (1, 1)), depthwise((3, 3))), True),
        (lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(64)), True),
        (lambda: Joined(64), False),
        (lambda: nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2)), False),
    ],
)
def test_the_default_decides_depthwise_forms_as_they_were_measured(
    model: Callable[[], nn.Module], merges: bool
) -> None:
    net, x = ready(model()), torch.randn(1, 64, 17, 15)
    for given in (None, x):
        deployed = reptool.deploy(net, given)
        assert bool(reptool.report(deployed).regions) == merges
        same(net, deployed, x)


def test_a_price_of_ones_own_decides() -> None:
    net = ready(nn.Sequential(depthwise((3, 3), (1, 1)), depthwise((3, 3))))
    costly = reptool.Costs(depthwise=100.0)
    (refusal,) = reptool.explain(net, price=costly).refusals
    assert refusal.code is Code.DEARER
    assert not reptool.report(reptool.deploy(net, price=costly)).regions
    with pytest.raises(InputError, match=r"price was given a float; give reptool\.Costs"):
        reptool.deploy(net, price=2.0)  # type: ignore[call-overload]


def assert_refused_by_price(model: nn.Module, layers: int = 2) -> None:
    """As it stands it is cheaper, and the report says so."""
    report = reptool.explain(model.eval())
    assert not report.regions
    assert Code.DEARER in {r.code for r in report.refusals}
    assert report.layers == (layers, layers)
    assert "instead of" in str(report)
    assert len(reptool.explain(model, force=True).regions) == 1


def test_kxk_then_kxk_is_refused_by_price() -> None:
    assert_refused_by_price(nn.Sequential(conv(8, 8, bias=False), conv(8, 8, padding=0)))


def test_depthwise_then_pointwise_is_refused_by_price() -> None:
    assert_refused_by_price(nn.Sequential(conv(16, 16, groups=16), conv(16, 16, 1)))


def test_a_linear_bottleneck_is_refused_by_price() -> None:
    assert_refused_by_price(nn.Sequential(conv(64, 8, 1), conv(8, 64, 1)))
    assert_refused_by_price(nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)))


def test_a_dense_1x1_before_a_grouped_kxk_is_refused_by_price() -> None:
    assert_refused_by_price(nn.Sequential(conv(16, 16, 1), conv(16, 16, padding=0, groups=16)))


def transition(channels: int, size: int) -> tuple[nn.Module, Tensor]:
    """DenseNet's transition: one 2x2 convolution of stride 2 has four times the weights and multiplies as often."""
    parts = (
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        conv(channels, channels // 2, 1, bias=False),
        nn.AvgPool2d(2),
        nn.ReLU(),
    )
    return randomize(nn.Sequential(*parts)).eval(), torch.randn(1, channels, size, size)


IN_ORDER = [r for r in RULES if r != "resample"]
"""Without the rule that pools first."""


def test_a_pooling_behind_a_pointwise_layer_is_folded_where_the_size_says_that_it_pays() -> None:
    model, x = transition(64, 16)
    (region,) = reptool.explain(model, x, rules=IN_ORDER).regions
    assert "avg_pool" in region.rules
    assert region.multiplications[0] == region.multiplications[1]
    assert_equivalent(model, reptool.deploy(model, x, rules=IN_ORDER), x)
    (pooled,) = reptool.explain(model, x).regions
    assert pooled.multiplications[0] == 4 * pooled.multiplications[1]


@pytest.mark.parametrize("given", [False, True])
def test_a_pooling_behind_a_pointwise_layer_stays_where_its_weights_cost_more(given: bool) -> None:
    model, x = transition(512, 4)
    report = reptool.explain(model, x if given else None, rules=IN_ORDER)
    assert not report.regions
    (refusal,) = [r for r in report.refusals if r.code is Code.DEARER]
    assert refusal.nodes == ("3",)
    assert ("example_inputs" in refusal.sentence, "weights" in refusal.sentence) == (True, True)
    deployed = reptool.deploy(model, x if given else None, rules=IN_ORDER)
    assert sum(p.numel() for p in deployed.parameters()) == sum(p.numel() for p in model.parameters())


def numbers(sentence: str) -> list[tuple[int, int]]:
    """The pairs ``new instead of old`` of a sentence."""
    found = re.findall(r"([\d,]+)[a-z ]* instead of ([\d,]+)", sentence)
    return [(int(a.replace(",", "")), int(b.replace(",", ""))) for a, b in found]


@pytest.mark.parametrize("given", [False, True])
def test_what_is_dearer_is_so_in_one_of_its_numbers(given: bool) -> None:
    models = [
        (nn.Sequential(nn.Conv1d(256, 128, 1), nn.AvgPool1d(2), nn.ReLU()), torch.randn(1, 256, 9)),
        (nn.Sequential(nn.Conv3d(64, 64, 1), nn.AvgPool3d(2), nn.BatchNorm3d(64)), torch.randn(1, 64, 4, 4, 4)),
        (nn.Sequential(conv(16, 16, groups=16), conv(16, 16, 1), nn.AvgPool2d(2)), torch.randn(1, 16, 8, 8)),
        (nn.Sequential(conv(64, 8, 1), conv(8, 64, 1), nn.BatchNorm2d(64)), torch.randn(1, 64, 8, 8)),
        (nn.Sequential(conv(4, 4, bias=False), conv(4, 4, padding=0), nn.AvgPool2d(3, 1, 1)), torch.randn(1, 4, 8, 8)),
        (nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 64)), torch.randn(2, 64)),
        transition(512, 4),
    ]
    refusals = [r for m, x in models for r in reptool.explain(m.eval(), x if given else None, rules=IN_ORDER).refusals]
    found = [r for r in refusals if r.code is Code.DEARER]
    assert len(found) >= 3
    for refusal in found:
        pairs = numbers(refusal.sentence)
        assert pairs, refusal
        assert any(new > old for new, old in pairs), refusal


def test_regions_are_priced_whole() -> None:
    branch = nn.Sequential(conv(8, 8, 1, bias=False), nn.AvgPool2d(3, 1, 1))
    alone = reptool.explain(branch.eval())
    assert not alone.regions, "folding a 1x1 into a pooling is dearer by itself"
    (region,) = reptool.explain(Sum(conv(8, 8), branch).eval()).regions
    assert {"avg_pool", "branch_add"} <= set(region.rules)
    assert region.price[1] < region.price[0]
    assert region.multiplications[1] < region.multiplications[0]


@pytest.mark.parametrize("seed", range(3))
def test_no_plan_raises_the_price_or_the_multiplications(seed: int) -> None:
    torch.manual_seed(seed)
    block = DiverseBranchBlock(8, 8)
    model = nn.Sequential(conv(3, 8), block, nn.ReLU(), conv(8, 8, groups=8), nn.BatchNorm2d(8), conv(8, 32, 1)).eval()
    report = reptool.explain(model)
    assert report.regions
    assert all(after < before for before, after in (r.price for r in report.regions))
    assert sum(r.multiplications[1] for r in report.regions) <= sum(r.multiplications[0] for r in report.regions)


# --- explain and report ---------------------------------------------------------------------------------------------
def test_rules_mean_the_same_for_sums_and_concatenations() -> None:
    for how in ("sum", "concat"):
        same = Parallel([conv(6, 8), conv(6, 8)], how).eval()
        other = Parallel([conv(6, 8), conv(6, 8, 1)], how).eval()
        rules = ["branch_add", "branch_concat"]
        assert len(reptool.explain(same, rules=rules, force=True).regions) == 1
        (refusal,) = reptool.explain(other, rules=rules, force=True).refusals
        assert (refusal.code, "kernel_size" in refusal.sentence) == (Code.RULE_OFF, True)
        (region,) = reptool.explain(other, rules=[*rules, "kernel_size"], force=True).regions
        assert "kernel_size" in region.rules


def test_explain_is_the_plan_that_deploy_carries_out() -> None:
    model = ready(Net())
    before = state(model)
    plan, done = reptool.explain(model), reptool.report(reptool.deploy(model))
    assert same_state(model, before)
    assert [r.layer for r in plan.regions] == [r.layer for r in done.regions]
    assert [r.price for r in plan.regions] == [r.price for r in done.regions]
    assert plan.names == done.names
    assert plan.refusals == done.refusals
    assert plan.layers == done.layers == (6, 4)
    assert plan.norms == done.norms == (7, 0)
    assert done.parameters[1] < done.parameters[0] == plan.parameters[0]


def test_explain_works_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Net().eval()
    real = Net().eval()
    assert [(r.layer, r.kind, r.rules, r.price) for r in reptool.explain(model).regions] == [
        (r.layer, r.kind, r.rules, r.price) for r in reptool.explain(real).regions
    ]
    with torch.device("meta"):
        hidden = nn.Sequential(nn.BatchNorm2d(4), conv(4, 4)).eval()
    assert Code.BORDER_BIAS in {r.code for r in reptool.explain(hidden).refusals}


def test_a_report_is_a_table_a_dict_and_json() -> None:
    model = ready(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)))
    report = reptool.report(reptool.deploy(model, images()))
    found = report.to_dict()
    assert json.loads(report.to_json()) == json.loads(json.dumps(found))
    assert found["regions"][0]["layer"] == "0"
    assert found["regions"][0]["absorbed"] == ["0", "1"]
    assert found["regions"][0]["rules"] == ["conv_bn"]
    assert found["regions"][0]["error"] < 1e-12
    assert found["names"] == {"0": ["0", "1"]}
    assert found["refusals"] == [
        {
            "code": "no-statistics",
            "sentence": "a batch norm without running statistics normalizes by its batch",
            "nodes": ["3"],
        }
    ]
    text = str(report)
    for part in (
        "Sequential",
        "Conv2d(3, 4, 3x3, padding=(1, 1))",
        "conv_bn",
        "no-statistics",
        "whole model against float64",
    ):
        assert part in text
    with pytest.raises(InputError, match=r"reptool\.explain"):
        reptool.report(model)


# --- requirements ---------------------------------------------------------------------------------------------------
class Asks(nn.Module):
    """Code that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Another way for dark images."""
        return self.conv(x) if float(x.sum()) > 0 else x


@pytest.mark.parametrize(
    ("require", "bad", "message"),
    [
        ("no_batchnorm", lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), "1 batch norm"),
        (
            "no_refusals",
            lambda: nn.Sequential(conv(3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
            "no-statistics",
        ),
        ("all_traced", Asks, "could not be followed"),
    ],
)
def test_a_requirement_turns_what_is_left_into_an_error(require: str, bad: Any, message: str) -> None:
    good, model = ready(nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.ReLU())), ready(bad())
    assert reptool.deploy(good, require=require) is not good
    assert reptool.deploy(good, require=("no_batchnorm", "no_refusals", "all_traced")) is not good
    before = state(model)
    with pytest.raises(RequirementError, match=message):
        reptool.deploy(model, require=require, inplace=True)
    assert same_state(model, before)
    with pytest.raises(InputError, match="unknown requirement"):
        reptool.deploy(good, require="no_bn")


# --- bad input ------------------------------------------------------------------------------------------------------
def quantized() -> nn.Module:
    """A model with one quantized layer."""
    model = Net().eval()
    layer = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.modules.linear"})
    model.head = layer(8, 5)
    return model


def one_input(model: nn.Module) -> Any:
    """A model with a parameter that is not there yet."""
    return nn.Sequential(nn.LazyConv2d(4, 3), model).eval()


def scripted() -> Any:
    """A traced module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.ReLU(), torch.ones(1))


BAD_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "not a module": (lambda: torch.relu, "got the function relu; put what it computes"),
    "a class": (lambda: Net, "got the class Net; make one of it"),
    "a ScriptModule": (scripted, "deploy the Python module first"),
    "quantized": (quantized, "'head' is quantized.*deploy the float model"),
    "lazy": (lambda: one_input(nn.ReLU()), "0.weight is uninitialized.*run the model once"),
}


@pytest.mark.parametrize("function", [reptool.deploy, reptool.explain])
@pytest.mark.parametrize("name", BAD_MODELS)
def test_what_is_no_plain_module_is_refused_with_what_to_do(function: Any, name: str) -> None:
    build, message = BAD_MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(UnsupportedModelError, match=message):
        function(model)


def test_meta_weights_cannot_be_deployed() -> None:
    with torch.device("meta"):
        model = Net().eval()
    with pytest.raises(UnsupportedModelError, match=r"meta device.*materialize"):
        reptool.deploy(model)
    part = Net().eval()
    part.stem[1].running_mean = torch.zeros(8, device="meta")
    with pytest.raises(UnsupportedModelError, match="meta device"):
        reptool.deploy(part)


@pytest.mark.parametrize("function", [reptool.deploy, reptool.explain])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"example_inputs": "cat.png"}, "example_inputs is a str"),
        ({"example_inputs": (images(), 1.0, 2.0)}, "do not fit Net.forward"),
        ({"example_inputs": {"image": images()}}, "do not fit Net.forward"),
        ({"example_inputs": torch.randn(2, 4, 8, 8)}, "does not run on example_inputs"),
        ({"example_inputs": ()}, "do not fit Net.forward"),
        ({"rules": ["conv_bn", "magic"]}, "unknown rules.*magic.*conv_bn"),
        ({"rules": "magic"}, "unknown rules"),
        ({"include": "layer7.*"}, "include pattern 'layer7.*' matches no module"),
        ({"include": ["stem", "layer7"]}, "'layer7' matches no module"),
    ],
)
def test_arguments_that_do_not_fit_change_nothing(function: Any, options: dict[str, Any], message: str) -> None:
    model = ready(Net())
    before, modules = state(model), list(model.modules())
    for more in [{}] if function is reptool.explain else [{"inplace": True}, {"inplace": True, "verify": False}]:
        with pytest.raises(InputError, match=message):
            function(model, **options, **more)
    assert same_state(model, before)
    assert list(model.modules()) == modules


def test_training_mode_names_the_fix() -> None:
    for function in (reptool.deploy, reptool.explain):
        with pytest.raises(InputError, match=r"model\.eval\(\)"):
            function(Net().train())


@pytest.mark.parametrize("kind", ["training", "no statistics"])
def test_one_norm_that_uses_its_batch_is_refused_by_name_and_the_rest_is_deployed(kind: str) -> None:
    model = ready(Net())
    if kind == "training":
        model.stem[1].train()
    else:
        model.stem[1] = nn.BatchNorm2d(8, track_running_stats=False).eval()
    before = state(model)
    deployed = reptool.deploy(model)
    assert same_state(model, before)
    (refusal,) = [r for r in reptool.report(deployed).refusals if r.code is not Code.DEARER]
    assert refusal.code is (Code.TRAINING_NORM if kind == "training" else Code.NO_STATISTICS)
    assert refusal.nodes == ("stem.1",)
    assert isinstance(deployed.stem[1], nn.BatchNorm2d)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in deployed.modules()) == 1
    torch.testing.assert_close(deployed(images()), deployed(images()), rtol=10, atol=10)


# --- verification ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tap", [(0, 0), (0, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_one_wrong_tap_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tap: tuple[int, int], stride: int
) -> None:
    model = ready(nn.Sequential(conv(3, 4, stride=stride), nn.BatchNorm2d(4), nn.ReLU()))
    before = state(model)
    grouped = reptool.algebra.kernel.Kernel.grouped_weight  # type: ignore[attr-defined]

    def planted(kernel: Any) -> Tensor:
        weight: Tensor = grouped(kernel).clone()
        weight[0, 0, tap[0], tap[1]] += 1e-6
        return weight

    monkeypatch.setattr("reptool.algebra.kernel.Kernel.grouped_weight", planted)
    with pytest.raises(RegionWarning, match=r"region '0' \(conv_bn\) is off by .* at input size \(\d+, \d+\)"):
        reptool.deploy(model, inplace=True)
    assert same_state(model, before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegionWarning)
        deployed = reptool.deploy(model, inplace=True)
    assert same_state(model, before)
    assert [r.code for r in reptool.report(deployed).refusals] == [Code.UNVERIFIED]
    assert not reptool.report(deployed).regions
    assert reptool.deploy(model, verify=False) is not model


def test_a_wrong_bias_or_padding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.rewrite import lower
    from reptool.verify import measure

    model = ready(nn.Sequential(conv(3, 4, padding_mode="reflect"), nn.BatchNorm2d(4)))

    def shifted(*given: Any) -> Any:
        weight, bias = lower.arranged(*given)
        assert bias is not None
        return weight, bias + 1e-7

    def zeros(shape: Any, *given: Any) -> nn.Module:
        layer = lower.new_layer(shape, *given)
        layer.padding_mode = "zeros"  # type: ignore[assignment]
        return layer

    for name, change in (("arranged", shifted), ("new_layer", zeros)):
        with monkeypatch.context() as patch:
            patch.setattr(measure, name, change)
            with pytest.raises(RegionWarning, match="conv_bn"):
                reptool.deploy(model)
    assert reptool.deploy(model) is not model


def test_a_cast_that_loses_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.verify import regions

    monkeypatch.setattr(regions, "CAST", 1e-3)
    with pytest.raises(RegionWarning, match=r"after the cast to torch\.float32.*wider dtype"):
        reptool.deploy(ready(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4))))


class _Unrehearsed:
    """Runs no method."""

    failed: dict[Any, Any] = {}  # noqa: RUF012 - nobody writes it

    def __init__(self, *_: Any) -> None:
        pass

    def against(self, target: nn.Module) -> int:
        return 0


def test_a_whole_model_that_differs_is_found_although_every_region_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.api import work

    def miswritten(model: nn.Module, *given: Any) -> None:
        write(model, *given)
        model.head.bias = nn.Parameter(model.head.bias.detach() + 0.1)  # type: ignore[operator, union-attr]

    write = work.write
    monkeypatch.setattr(work, "write", miswritten)
    model = ready(Net())
    before = state(model)
    monkeypatch.setattr(work, "Rehearsal", _Unrehearsed)
    with pytest.raises(VerificationError, match=r"Net is off by .* nothing was changed"):
        reptool.deploy(model, images(), inplace=True)
    assert same_state(model, before)
    assert reptool.deploy(model) is not model


class Sides(nn.Module):
    """Says of every value on which side of an edge it lies: rounding decides for those that lie on it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.register_buffer("edge", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """One above the edge, zero below."""
        return (self.norm(self.conv(x)) > self.edge).to(x.dtype)


def test_an_output_that_hangs_on_rounding_is_checked_in_float64() -> None:
    model, x = ready(Sides()), images()
    with torch.no_grad():
        fused = reptool.deploy(nn.Sequential(model.conv, model.norm).eval())(x)
        own, exact = model.norm(model.conv(x)), copy.deepcopy(model).double()
        exact = exact.norm(exact.conv(x.double()))
        model.edge.copy_(own[(exact < own) & (own < fused)][0])  # only the deployed model is above it
    deployed = reptool.deploy(model, x)
    found = reptool.report(deployed)
    assert found.model_error == (pytest.approx(1.0), 0.0)
    assert found.model_error_float64 == 0.0
    assert "depends on rounding" in str(found)
    assert isinstance(deployed.norm, nn.Identity)


@pytest.mark.parametrize("verify", ["fast", "full"])
def test_how_much_is_verified_is_one_of_three(verify: Any) -> None:
    model = ready(nn.Sequential(conv(3, 4, stride=2), nn.BatchNorm2d(4)))
    (region,) = reptool.report(reptool.deploy(model, verify=verify)).regions
    assert region.sizes == (1 if verify == "fast" else 2)
    with pytest.raises(InputError, match="verify='quick'; give 'full'"):
        reptool.deploy(model, verify="quick")  # type: ignore[call-overload]
