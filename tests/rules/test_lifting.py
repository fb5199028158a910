"""`lifts`: own modules and functions fuse like layers, under their rule's name; what is wrong is told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code, Refusal
from reptool.errors import InputError, RegionWarning, RuleError
from reptool.lift.registry import FUNCTIONS, MODULES
from reptool.rules import Conv, Linear, Scale, Value
from reptool.rules.lifting import LIFTS
from reptool.testing import PERTURBED_KINDS, assert_equivalent, perturb, randomize


class Smooth(nn.Module):
    """A depthwise layer whose code cannot be followed."""

    def __init__(self, channels: int = 8, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(channels, 1, 3, 3))
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data, and compute the same either way."""
        taps = self.taps.exp() if float(x.detach().sum()) < 1e30 else self.taps.exp() + 0
        return F.conv2d(x, taps, None, self.stride, self.padding, 1, len(taps))


def shifted(x: Tensor, taps: Tensor, *, gain: float = 1.0) -> Tensor:
    """A function whose code cannot be followed."""
    return F.conv2d(x, taps, padding=1) * (gain if float(x.detach().sum()) < 1e30 else gain + 0)


class Shifted(nn.Module):
    """Calls it between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.taps, self.norm = nn.Parameter(torch.randn(8, 4, 3, 3)), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        """One call, through a name of its own."""
        call = shifted
        return torch.relu(self.norm(call(x, self.taps, gain=2.0)))


class Gain(nn.Module):
    """A norm with constants."""

    def __init__(self) -> None:
        super().__init__()
        self.log, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data."""
        y = x * self.log.exp().view(-1, 1, 1)
        return y + self.shift.view(-1, 1, 1) if float(x.detach().sum()) < 1e30 else y


class Twice(torch.autograd.Function):
    """Twice its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        """One product."""
        return 2 * x


@torch.library.custom_op("reptool_tests::thrice", mutates_args=())
def thrice(x: Tensor) -> Tensor:
    """Three times its input."""
    return 3 * x


class Doubled(nn.Module):
    """Calls both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Six times as much."""
        return torch.relu(thrice(Twice.apply(self.conv(x))))


@pytest.fixture(autouse=True)
def _no_rules_are_left() -> Iterator[None]:
    lifts, before = dict(LIFTS), (dict(MODULES), dict(FUNCTIONS))
    yield
    for name in LIFTS.keys() - lifts.keys():
        LIFTS[name].remove()
    assert (dict(MODULES), dict(FUNCTIONS)) == before


def smooth(module: Any) -> Conv:
    """What `Smooth` is."""
    taps = module.taps.exp()
    return Conv(taps, stride=module.stride, padding=module.padding, groups=len(taps))


def net(part: nn.Module) -> nn.Module:
    """Layers around it, norms with statistics."""
    return randomize(nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), part, nn.BatchNorm2d(8), nn.ReLU()), 0).eval()


def rules_of(model: nn.Module) -> list[list[str]]:
    return [r.rules for r in reptool.report(model).regions]


X = torch.randn(2, 4, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{"stride": 2}, {"padding": 0}, {}], ids=str)
def test_a_module_is_fused_like_a_layer(options: dict[str, int]) -> None:
    reptool.lifts(Smooth)(smooth)
    model = net(Smooth(**options))
    deployed = reptool.deploy(model, X)
    assert rules_of(deployed) == [["conv_bn", "smooth"]]
    assert isinstance(deployed[2], nn.Conv2d)  # type: ignore[index]
    assert "read by the rule 'smooth'; tested in" in str(reptool.report(deployed))
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)
    kinds = [
        k for k in PERTURBED_KINDS if k not in ("attribute", "added", "read", "weight")
    ]  # it is a layer of torch's
    perturb(model, deployed, X, tries=25, kinds=kinds)


def test_without_the_rule_the_module_is_left() -> None:
    model = net(Smooth())
    assert rules_of(reptool.deploy(model, X)) == []
    lift = reptool.lifts(Smooth)(smooth)
    assert rules_of(reptool.deploy(model, X, rules=["conv_bn"])) == []
    assert rules_of(reptool.deploy(model, X, rules=["conv_bn", "smooth"])) == [["conv_bn", "smooth"]]
    assert rules_of(reptool.deploy(model, X, rules=("conv_bn", lift))) == [["conv_bn", "smooth"]]
    lift.remove()
    assert rules_of(reptool.deploy(model, X)) == []


def test_a_model_that_was_deployed_is_deployed_again_once_there_is_a_rule() -> None:
    model = reptool.deploy(net(Smooth()), X)
    reptool.lifts(Smooth)(smooth)
    assert rules_of(reptool.deploy(model, X)) == [["conv_bn", "smooth"]]


def test_a_function_is_fused_however_it_is_called() -> None:
    @reptool.lifts(shifted)
    def moved(x: Value, taps: Tensor, *, gain: float = 1.0) -> Conv:
        assert x.channels == 4
        assert x.axes == 2
        return Conv(taps * gain, padding=1)

    model = randomize(Shifted(), 0).eval()
    code, defaults = shifted.__code__, shifted.__kwdefaults__
    deployed = reptool.deploy(model, X)
    assert (shifted.__code__, shifted.__kwdefaults__) == (code, defaults)
    assert rules_of(deployed) == [["conv_bn", "moved"]]
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


def test_autograd_functions_and_registered_operators() -> None:
    @reptool.lifts(Twice.apply, name="times")
    def two(x: Value) -> Scale:
        return Scale(torch.full((x.channels,), 2.0))

    reptool.lifts(thrice)(lambda x: Scale(torch.full((x.channels,), 3.0)))
    model = Doubled().eval()
    deployed = reptool.deploy(model, X)
    assert rules_of(deployed) == [["scale", "thrice", "times"]]
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


def test_a_scale_goes_into_the_layer_in_front() -> None:
    @reptool.lifts(Gain)
    def gain(module: Any) -> Scale:
        return Scale(module.log.exp(), module.shift)

    model = nn.Sequential(nn.Conv2d(4, 8, 3), Gain(), nn.ReLU()).eval()
    deployed = reptool.deploy(model)
    assert rules_of(deployed) == [["gain", "scale"]]
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


class Last(nn.Module):
    """A linear layer, or one that acts on two dimensions alone."""

    def __init__(self, weird: bool) -> None:
        super().__init__()
        self.weight, self.weird = nn.Parameter(torch.randn(5, 8)), weird

    def forward(self, x: Tensor) -> Tensor:
        """Decide by data."""
        y = F.linear(x, self.weight)
        return y * (2.0 if self.weird and x.dim() > 2 else 1.0) if float(x.detach().sum()) < 1e30 else y


@pytest.mark.parametrize("weird", [False, True])
def test_a_linear_layer_is_tested_at_every_rank(weird: bool) -> None:
    reptool.lifts(Last)(lambda module: Linear(module.weight))
    model, x = nn.Sequential(nn.Linear(4, 8), Last(weird)).eval(), torch.randn(3, 4)
    if weird:
        with pytest.warns(RegionWarning, match=r"other values.*\(2, 3, 8\)"):
            deployed = reptool.deploy(model, x)
    else:
        deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1 - weird
    for shape in ((3, 4), (2, 3, 4)):
        assert_equivalent(model, deployed, torch.randn(shape), dtype=None, vary=False, rtol=1e-5)


def test_a_rule_of_a_base_class_is_one_of_its_subclasses_and_theirs_comes_first() -> None:
    class Wide(Smooth):
        """Three times as much."""

        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    reptool.lifts(Smooth)(smooth)
    with pytest.warns(RegionWarning, match=r"rule 'smooth' for 2 .*other values"):
        reptool.deploy(net(Wide()), X)

    @reptool.lifts(Wide)
    def wide(module: Any) -> Conv:
        return Conv(3 * module.taps.exp(), stride=module.stride, padding=module.padding, groups=8)

    assert rules_of(reptool.deploy(net(Wide()), X)) == [["conv_bn", "wide"]]


def test_one_rule_for_two_classes_and_the_same_cell_run_again() -> None:
    class Other(Smooth):
        """The same by another name."""

    both = reptool.lifts(Smooth)(reptool.lifts(Other)(smooth))
    assert both.targets == (Other, Smooth)
    again = reptool.lifts(Smooth)(smooth)
    assert [e.rule for e in MODULES[Smooth]] == ["smooth"]
    assert LIFTS["smooth"] is again


def test_a_rule_may_refuse_or_leave_it_to_others() -> None:
    reptool.lifts(Smooth)(lambda module: Refusal(Code.RULE, "only on Sundays"))
    report = reptool.report(reptool.deploy(net(Smooth()), X))
    assert [r for r in report.refusals if "rule 'Smooth' for 2: only on Sundays" in r.sentence]

    class Mine(nn.Conv2d):
        """A plain convolution."""

    reptool.lifts(Mine)(lambda module: None)
    model = net(Mine(8, 8, 3))
    assert rules_of(reptool.deploy(model, X)) == [["conv_bn"]]


WRONG = {
    "padding": lambda m: Conv(m.taps.exp(), padding=0, groups=8),
    "stride": lambda m: Conv(m.taps.exp(), padding=1, stride=2, groups=8),
    "bias": lambda m: Conv(m.taps.exp(), torch.ones(8), padding=1, groups=8),
    "weight": lambda m: Conv(m.taps, padding=1, groups=8),
    "border": lambda m: Conv(m.taps.exp(), padding=1, groups=8, padding_mode="reflect"),
    "flipped": lambda m: Conv(m.taps.exp().flip(-1), padding=1, groups=8),
    "order": lambda m: Conv(m.taps.exp().flip(0), padding=1, groups=8),
    "float32": lambda m: Conv(m.taps.float().exp(), padding=1, groups=8),
}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_is_wrong_is_refused_with_the_rule_and_the_place(name: str) -> None:
    reptool.lifts(Smooth)(WRONG[name])
    model = net(Smooth())
    with pytest.warns(RegionWarning, match=r"rule 'Smooth' for 2 does not say what its code computes"):
        deployed = reptool.deploy(model, X)
    (refusal,) = [r for r in reptool.report(deployed).refusals if r.code is Code.UNVERIFIED]
    assert "2" in refusal.nodes
    assert_equivalent(model, deployed, X, dtype=None, rtol=1e-5)


class Rude(Smooth):
    """Writes into its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what it should, and more."""
        y = super().forward(x)
        x.mul_(2.0)
        return y


def test_what_writes_into_its_input_is_refused() -> None:
    reptool.lifts(Rude)(smooth)
    with pytest.warns(RegionWarning, match="writes into its input"):
        deployed = reptool.deploy(net(Rude()), X)
    assert Code.MUTATED in {r.code for r in reptool.report(deployed).refusals}


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (lambda module: module.nothing, "it raised AttributeError.*nothing"),
        (lambda module: 3, "it returned a int; return a reptool.rules Conv"),
        (lambda module: Conv(module.taps[0, 0]), r"Conv takes a weight .* got shape \(3, 3\)"),
        (lambda module: Conv(module.taps, groups=3), "Conv has groups=3"),
        (lambda module: Conv(module.taps, torch.ones(3)), "the bias has shape"),
    ],
)
def test_what_breaks_is_an_error_that_names_the_rule_and_the_place(says: Any, told: str) -> None:
    reptool.lifts(Smooth, name="broken")(says)
    with pytest.raises(RuleError, match=rf"deploy: rule 'broken' for 2: {told}"):
        reptool.deploy(net(Smooth()), X)


def test_what_is_not_known_is_asked_for() -> None:
    reptool.lifts(shifted)(lambda x, taps, gain=1.0: Conv(taps[:, : x.channels] * gain, padding=1))
    report = reptool.explain(Shifted().eval())
    assert [r for r in report.refusals if r.code is Code.CHANNELS and "give example_inputs" in r.sentence]


def test_a_function_of_two_values_is_none() -> None:
    class Dynamic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return shifted(x, x[:, :, :3, :3].reshape(8, 4, 3, 3))

    reptool.lifts(shifted)(lambda x, taps, gain=1.0: Conv(taps, padding=1))
    report = reptool.explain(nn.Sequential(Dynamic(), nn.BatchNorm2d(8)).eval())
    assert [r for r in report.refusals if r.code is Code.DATA_WEIGHT]


def test_on_the_meta_device_shapes_are_enough() -> None:
    reptool.lifts(Smooth)(smooth)
    assert [r.rules for r in reptool.explain(net(Smooth()).to("meta")).regions] == [["conv_bn", "smooth"]]


@pytest.mark.parametrize("target", [3, nn.ReLU(), dict, "Conv2d"])
def test_what_cannot_be_lifted(target: Any) -> None:
    with pytest.raises(InputError, match="lifts takes a class of modules or a function"):
        reptool.lifts(target)


def test_names_of_built_in_rules_are_taken() -> None:
    with pytest.raises(InputError, match="'conv_bn'; give name="):
        reptool.lifts(Smooth, name="conv_bn")(smooth)
    with pytest.raises(InputError, match=r"unknown rules \['nothing'\].*distribute"):
        reptool.deploy(net(Smooth()), rules="nothing")
