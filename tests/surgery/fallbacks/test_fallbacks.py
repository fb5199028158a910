"""Methods that asked something are specialized with `keep_fallback=True`, and run as they were where they must."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import InputError, SpecializedError
from reptool.refusal import Code
from reptool.runtime.expect import KEPT
from reptool.runtime.originals import Kept
from reptool.testing import assert_equivalent, randomize


def image(size: int = 16, batch: int = 2) -> Tensor:
    """Images of one size."""
    return torch.randn(batch, 4, size, size - 2)


class Net(nn.Module):
    """Layers under every name that the forwards below use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))


class Branch(Net):
    """A sum of branches for large images, one branch for small ones."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        if x.shape[2] >= 16:
            return torch.relu(self.bn(self.a(x) + self.b(x)))
        return torch.tanh(self.bn(self.a(x)))


class Odd(Net):
    """Other code where a size is odd."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a remainder."""
        y = self.a(x) + self.b(x)
        if x.shape[2] % 2:
            y = torch.relu(y)
        return self.bn(y)


class Parts(Net):
    """A block that is run in parts for small images."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        if x.shape[2] >= 16:
            return self.block(x)
        return self.block[1](torch.relu(self.block[0](x)))


class Choice(Net):
    """A choice among norms."""

    def forward(self, x: Tensor, i: int = 0) -> Tensor:
        """A flag."""
        return self.bns[i](self.a(x))


class Functional(Net):
    """A weight of the module itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        if x.shape[2] >= 16:
            return self.bn(torch.nn.functional.conv2d(x, self.weight, padding=1) + self.b(x))
        return torch.nn.functional.conv2d(x, self.weight)


class Deep(Net):
    """Code that asks, in a method called by one that does not, around a block of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Call a method."""
        return self.block(self.mix(x)) + 1

    def mix(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        y = self.a(x)
        if x.shape[3] != 14:
            y = torch.relu(y)
        return self.bn(y + self.b(x))


class Type(Net):
    """Other code for another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a dtype."""
        if x.dtype == torch.float32:
            return self.bn(self.a(x) + self.b(x))
        return self.bn(self.a(x))


class Training(Net):
    """Other code in training."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for the mode."""
        y = self.a(x) if self.training else self.a(x) + self.b(x)
        return self.bn(y)


class Listed(Net):
    """Several images at once, and none."""

    def forward(self, images: list[Tensor], extra: Tensor | None = None) -> list[Tensor]:
        """Ask how many there are."""
        out = [self.bn(self.a(x) + self.b(x)) if len(images) == 2 else self.a(x) for x in images]
        return out if extra is None else [*out, self.b(extra)]


ALL = [Branch, Odd, Parts, Choice, Functional, Deep, Type]


def made(cls: type[nn.Module]) -> nn.Module:
    """A model in eval mode with statistics that hide nothing."""
    return randomize(cls(), 0).eval()


def same(model: Callable[..., Any], other: Callable[..., Any], *args: Any) -> None:
    """Both give the same, up to rounding in float32, or both raise."""
    try:
        wanted = model(*args)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            other(*args)
        return
    torch.testing.assert_close(other(*args), wanted, rtol=2e-4, atol=2e-4)


def kept(model: nn.Module) -> list[Kept]:
    """What a deployed model keeps."""
    return [m for m in model.modules() if isinstance(m, Kept)]


@pytest.mark.parametrize("cls", ALL)
def test_every_size_is_right_and_the_traced_one_is_fused(cls: type[nn.Module]) -> None:
    model = made(cls)
    deployed = reptool.deploy(model, image(), keep_fallback=True)
    report = reptool.report(deployed)
    assert report.regions, report
    assert report.fallbacks, report
    assert not [r for r in report.refusals if r.code is Code.SPECIALIZED], report
    for size in range(3, 41):
        same(model, deployed, image(size, 1 + size % 3))
    seen: list[str] = []
    for name in ("bn", "bns.0", "block.1"):
        for module in [m for n, m in deployed.named_modules() if n.endswith(f"{KEPT}.{name}")]:
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    for batch in (1, 2, 5):
        deployed(image(16, batch))
    assert not seen


@pytest.mark.parametrize("cls", [Branch, Odd, Functional, Deep])
def test_by_default_such_a_site_is_left(cls: type[nn.Module]) -> None:
    model = made(cls)
    deployed = reptool.deploy(model, image())
    assert not kept(deployed)
    assert [r for r in reptool.report(deployed).refusals if r.code is Code.SPECIALIZED]
    assert not reptool.report(reptool.deploy(model, keep_fallback=True)).fallbacks  # nobody showed a size


def test_a_flag_falls_back_instead_of_raising() -> None:
    model = made(Choice)
    deployed = reptool.deploy(model, image(), keep_fallback=True)
    for i in (0, 1, 2, True, -1):
        same(model, deployed, image(9), i)
    raising = reptool.deploy(model, image())
    if reptool.report(raising).regions:
        with pytest.raises(SpecializedError):
            raising(image(), 1)


@pytest.mark.parametrize("cls", ALL)
def test_the_originals_are_ordinary_submodules(cls: type[nn.Module]) -> None:
    model = made(cls)
    deployed = reptool.deploy(model, image(), keep_fallback=True)
    assert any(f"{KEPT}." in k for k in deployed.state_dict())
    loaded = made(cls)
    with torch.no_grad():
        for p in loaded.parameters():
            p.add_(0.1)
    other = reptool.deploy(loaded, image(), keep_fallback=True)
    other.load_state_dict(deployed.state_dict())
    wide = copy.deepcopy(model).double()
    for size in (8, 16, 20):
        same(model, copy.deepcopy(deployed), image(size))
        same(model, other, image(size))
        same(wide, copy.deepcopy(deployed).double(), image(size).double())
    again = pickle.loads(pickle.dumps(deployed))
    same(model, again, image(8))
    same(model, again, image(16))


def test_a_double_still_takes_the_fast_path_unless_the_dtype_was_asked_for() -> None:
    for cls, fast in ((Branch, True), (Type, False)):
        deployed = reptool.deploy(made(cls), image(), keep_fallback=True).double()
        seen: list[int] = []
        for module in kept(deployed)[0].modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        deployed(image().double())
        assert bool(seen) is not fast


def test_a_second_deploy_changes_nothing() -> None:
    for cls in ALL:
        deployed = reptool.deploy(made(cls), image(), keep_fallback=True)
        for options in ({"keep_fallback": True}, {}):
            for given in (image(), None):
                again = reptool.deploy(deployed, given, **options)
                assert str(again) == str(deployed)
                assert again.state_dict().keys() == deployed.state_dict().keys()
                same(deployed, again, image())
                same(deployed, again, image(9))


def test_in_place() -> None:
    model = made(Branch)
    before = copy.deepcopy(model)
    assert reptool.deploy(model, image(), keep_fallback=True, inplace=True) is model
    assert kept(model)
    same(before, model, image(8))
    same(before, model, image(16))


def test_training_is_no_case_for_a_fallback() -> None:
    model = made(Training)
    deployed = reptool.deploy(model, image(), keep_fallback=True).train()
    for size in (8, 16):
        with pytest.raises(SpecializedError, match="training"):
            deployed(image(size))
    model = made(Branch)
    plain = reptool.deploy(model, image(), keep_fallback=True).train()
    assert not any(m.training for m in kept(plain)[0].modules())
    for _ in range(2):  # the statistics that were fused are those that are kept
        same(model, plain, image(8))


def test_export_at_the_traced_size() -> None:
    deployed = reptool.deploy(made(Branch), image(), keep_fallback=True)
    program = torch.export.export(deployed, (image(),))
    same(deployed, program.module(), image())
    assert sum("conv" in str(n.target) for n in program.graph.nodes) == 1


class Others(Branch):
    """Methods beside the forward: one that uses the layers by themselves, one that does not."""

    def alone(self, x: Tensor) -> Tensor:
        """One layer."""
        return self.bn(torch.relu(self.a(x)))

    def apart(self, x: Tensor) -> Tensor:
        """Layers that nothing changes."""
        return self.block(x)


def test_other_methods_of_the_module_go_on() -> None:
    model = made(Others)
    deployed: Any = reptool.deploy(model, image(), keep_fallback=True)
    for size in (8, 16):
        same(model, deployed, image(size))
        same(model.alone, deployed.alone, image(size))  # type: ignore[arg-type]
        same(model.apart, deployed.apart, image(size))  # type: ignore[arg-type]


def test_lists_and_optional_arguments() -> None:
    model = made(Listed)
    deployed = reptool.deploy(model, ([image(), image()],), keep_fallback=True)
    assert reptool.report(deployed).fallbacks
    for args in (([image(), image()],), ([image()],), ([image(), image(), image()],), ([image(), image()], image())):
        for one, other in zip(model(*args), deployed(*args), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


class Values(Net):
    """Code that asks for values."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a sum."""
        if x.sum() > 0:
            return self.bn(self.a(x) + self.b(x))
        return self.bn(self.a(x))


class State(Net):
    """Code that remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Ask what was before."""
        self.calls = self.calls + 1
        if self.calls % 2:
            return self.bn(self.a(x) + self.b(x))
        return self.bn(self.a(x))


class Gradient(Net):
    """Code that asks for what no argument tells."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a flag of a tensor and for a mode."""
        if x.requires_grad and torch.is_grad_enabled():
            return self.bn(self.a(x))
        return self.bn(self.a(x) + self.b(x))


@pytest.mark.parametrize("cls", [Values, State, Gradient])
def test_what_the_arguments_do_not_tell_is_refused(cls: type[nn.Module]) -> None:
    model = made(cls)
    deployed = reptool.deploy(model, image(), keep_fallback=True)
    assert not kept(deployed)
    assert {r.layer for r in reptool.report(deployed).regions} <= {"block.0"}
    for sign in (1, -1):
        same(copy.deepcopy(model), copy.deepcopy(deployed), image().abs() * sign)
    x = image().requires_grad_()
    same(copy.deepcopy(model), copy.deepcopy(deployed), x)


class Wide(nn.Module):
    """A site that saves less than keeping it would cost."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(256, 256, 21), nn.BatchNorm1d(256)

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        y = self.conv(x)
        if x.shape[2] > 64:
            y = torch.relu(y)
        return self.bn(y)


def test_the_weights_kept_are_priced() -> None:
    model, x = made(Wide), torch.randn(1, 256, 32)
    refused = reptool.explain(model, x, keep_fallback=True)
    assert not refused.kept[0]
    assert [r for r in refused.refusals if r.code is Code.DEARER and "weights for a fallback" in r.sentence]
    forced = reptool.deploy(model, x, keep_fallback=True, force=True)
    report = reptool.report(forced)
    assert report.kept[0] >= 256 * 256 * 21
    assert report.kept[1] >= 4 * report.kept[0]
    assert "kept for fallbacks" in str(report)
    same(model, forced, x)
    same(model, forced, torch.randn(1, 256, 80))


class Chain(nn.Sequential):
    """A container with code of its own: one more child would be one more layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        y = self[0](x) + self[1](x)
        if x.shape[2] < 16:
            y = torch.relu(y)
        for layer in self[2:]:
            y = layer(y)
        return y


class Walked(Net):
    """A module that runs all of its children."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.a, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Ask for a size."""
        for layer in self.children():
            x = layer(x)
            if x.shape[2] < 16:
                x = torch.relu(x)
        return x


def chain() -> Chain:
    """Two branches and a norm."""
    return Chain(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def test_nothing_is_kept_where_children_are_walked() -> None:
    for build in (chain, Walked):
        model = randomize(build(), 0).eval()
        deployed = reptool.deploy(model, image(), keep_fallback=True)
        assert not kept(deployed)
        assert [r for r in reptool.report(deployed).refusals if r.code is Code.SPECIALIZED]
        same(model, deployed, image(8))
    wrapped = Wrap()
    randomize(wrapped, 0).eval()
    deployed = reptool.deploy(wrapped, image(), keep_fallback=True)
    assert [n for n, m in deployed.named_modules() if n.endswith(KEPT)] == [KEPT]
    for size in (8, 16, 17):
        same(wrapped, deployed, image(size))


class Wrap(nn.Module):
    """A module that may keep what a container inside it may not."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = chain()

    def forward(self, x: Tensor) -> Tensor:
        """Run the container."""
        return self.chain(x)


class Nested(nn.Module):
    """A module with a fallback inside a module with one, and a layer that both leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = Branch(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Ask for another size than the inner module."""
        y = self.head(self.inner(x))
        if x.shape[3] == 14:
            return self.a(y) + self.b(y)
        return self.a(y)


def test_nested_fallbacks_and_what_needs_none() -> None:
    model = made(Nested)
    deployed = reptool.deploy(model, image(), keep_fallback=True)
    assert set(reptool.report(deployed).fallbacks) == {"<root>.forward", "inner.forward"}
    names = {n for n, _ in deployed.named_modules()}
    assert f"{KEPT}.a" in names
    assert not any(n.startswith((f"{KEPT}.head", f"{KEPT}.inner")) for n in names)
    for height in (8, 16, 24):
        for width in (8, 14, 24):
            same(model, deployed, torch.randn(2, 4, height, width))


def test_one_graph_has_no_fallback() -> None:
    with pytest.raises(InputError, match="flatten"):
        reptool.deploy(made(Branch), image(), keep_fallback=True, flatten=True)


def test_explain_says_it_too() -> None:
    found = reptool.explain(made(Branch), image(), keep_fallback=True)
    assert list(found.fallbacks) == ["<root>.forward"]
    assert found.kept == reptool.report(reptool.deploy(made(Branch), image(), keep_fallback=True)).kept
    assert found.to_dict()["fallbacks"]["<root>.forward"] == ["x=(>=1, >=2, 16, >=2)"]


def test_exact_in_float64() -> None:
    model = made(Branch).double()
    deployed = reptool.deploy(model, image().double(), keep_fallback=True)
    assert_equivalent(model, deployed, image().double())
