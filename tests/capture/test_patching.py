"""Everything that is patched while tracing is put back, whatever happens in between."""

from __future__ import annotations

import builtins
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.capture import patching as patches
from reptool.capture.tracer import Recorder
from reptool.errors import InputError
from tests.traps import ConvBN, assert_same, check, codes, image, norms, ready

OWNERS: tuple[Any, ...] = (
    nn.Module, nn.BatchNorm2d, torch, math, builtins, torch.autograd.Function, torch.jit.ScriptFunction,
    torch.utils.checkpoint,
)  # fmt: skip


def described() -> list[dict[str, Any]]:
    """Every function that the owners hold (what torch imports late is none)."""
    return [{n: f for n in [*vars(owner)] if callable(f := inspect.getattr_static(owner, n))} for owner in OWNERS]


class Double(torch.autograd.Function):
    """Twice its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Twice its input."""
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Twice the gradient."""
        return grads[0] * 2


class UsesDouble(nn.Module):
    """A convolution and a norm, and an autograd function behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Double.apply(self.bn(self.conv(x)))
        return y


def check_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = UsesDouble().eval(), torch.randn(1, 3, 5, 5)
    wanted = model(x)
    deployed = reptool.deploy(model, x)  # what torch itself replaces when it is first used is replaced now
    before = described()
    with patches.patched(Recorder(model)):
        assert sum(b != a for b, a in zip(before, described(), strict=True)) >= 6
    assert described() == before
    reptool.deploy(model, x)
    assert described() == before
    assert torch.allclose(deployed(x), wanted, atol=1e-5)
    assert torch.equal(Double.apply(x), x * 2)

    def broken(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as context:
        context.setattr(patches, "_withheld", broken)
        with pytest.raises(MemoryError), patches.patched(Recorder(model)):
            pass
    assert described() == before
    with pytest.raises(KeyError), patches.patched(Recorder(model)):
        raise KeyError
    assert described() == before


def test_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    check_all_is_put_back(monkeypatch)


def test_between_traces_the_methods_of_modules_stay_replaced_and_do_nothing() -> None:
    model, x = UsesDouble().eval(), torch.randn(1, 3, 5, 5)
    wanted, before = model(x), described()
    names = ("__call__", "__getattr__", "__setattr__", "__delattr__")
    with patches.between_traces():
        special = [vars(nn.Module)[n] for n in names]
        assert all(f is not before[0][n] for f, n in zip(special, names, strict=True))
        with patches.patched(Recorder(model)), patches.between_traces():
            assert [vars(nn.Module)[n] for n in names] == special
        assert described()[1:] == before[1:]
        assert [vars(nn.Module)[n] for n in names] == special
        assert torch.equal(model(x), wanted)
    assert described() == before
    with pytest.raises(KeyError), patches.between_traces():
        raise KeyError
    assert described() == before


@pytest.mark.models
def test_all_is_put_back_with_the_other_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public models run with another release of PyTorch, whose internals are not the same."""
    check_all_is_put_back(monkeypatch)


class Sets(ConvBN):
    """Its forward sets an attribute of a layer before or after it runs it."""

    def __init__(self, layer: str, first: dict[str, Any], then: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.first, self.then = layer, first, then

    def forward(self, x: Any) -> Any:
        for name, value in self.first.items():
            setattr(self.get_submodule(self.layer), name, value)
        y = self.bn(self.conv(x))
        for name, value in self.then.items():
            setattr(self.get_submodule(self.layer), name, value)
        return y


@pytest.mark.parametrize(
    "model",
    [
        Sets("bn", {"eps": 0.7}, {"eps": 1e-5}),
        Sets("bn", {}, {"eps": 0.7}),
        Sets("bn", {"training": True}, {"training": False}),
        Sets("conv", {"dilation": (2, 2), "padding": (2, 2)}, {"dilation": (1, 1), "padding": (1, 1)}),
    ],
)
def test_a_layer_that_the_forward_sets_is_no_constant(model: nn.Module) -> None:
    deployed, report = check(ready(model), calls={"twice": lambda m, x: [m(x), m(x)]})
    assert norms(deployed) == 1
    assert codes(report) == {"specialized"}
    with pytest.raises(InputError, match="sets"):
        reptool.deploy(ready(model), flatten=True)


class Generated(ConvBN):
    """The weight of the layer is made by every call."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Parameter(self.conv.weight.detach().clone())
        del self.conv.weight
        self.conv.weight = None  # type: ignore[assignment]

    def forward(self, x: Any) -> Any:
        self.conv.weight = self.made * x.mean()
        return self.bn(self.conv(x))


class Deletes(ConvBN):
    """The weight is taken away and put back by every call."""

    def forward(self, x: Any) -> Any:
        weight = self.conv.weight
        del self.conv.weight
        self.conv.weight = weight
        return self.bn(self.conv(x))


@pytest.mark.parametrize("model", [Generated, Deletes])
def test_a_weight_that_the_forward_puts_into_a_layer_is_no_constant(model: type[nn.Module]) -> None:
    deployed = reptool.deploy(ready(model()))
    assert norms(deployed) == 1
    assert_same(ready(model())(image()).shape, deployed(image()).shape)


def test_writing_what_an_attribute_is_already_is_no_change() -> None:
    deployed, _ = check(ready(Sets("bn", {"eps": 1e-5, "training": False}, {})))
    assert norms(deployed) == 0
