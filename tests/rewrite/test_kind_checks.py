"""Dtypes that were asked for: folded, checked at every call, and what follows the model to another dtype."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.capture.tracer import Recorder
from reptool.errors import SpecializedError
from reptool.frontends.inputs import placeholders
from reptool.ir.trace import Event
from reptool.rewrite.constants import CannotCutError
from reptool.rewrite.kind_checks import kinds_asked
from tests.traps import assert_same


class Branches(nn.Module):
    """A layer and a second one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.beside = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        x = x if x.dtype == self.beside.weight.dtype else x.to(self.beside.weight.dtype)
        return y + self.beside(x)


class Helped(Branches):
    """The same with a method of its own that hands on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.beside(self.fitted(x, self.beside.weight.dtype))

    def fitted(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x if x.dtype == dtype else x.to(dtype)


class Named(Branches):
    """A dtype that is spelled out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.beside(x) if x.dtype == torch.float32 else self.base(x)


class Normed(nn.Module):
    """Modules in a row, whose method need not be written anew."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.dtype == torch.float64 else self.bn(self.conv(x))


def logged(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(self, *args, **kwargs)

    return run


class Decorated(Normed):
    forward = logged(Normed.forward)


def layers(model: nn.Module) -> int:
    return sum(isinstance(m, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)) for m in model.modules())


def deployed(kind: type[nn.Module], **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(kind(), nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 7) if issubclass(kind, Normed) else torch.randn(2, 6)
    return model, reptool.deploy(model, x, **options), x


@pytest.mark.parametrize("kind", [Branches, Helped, Named, Normed, Decorated])
def test_the_dtype_shown_is_folded_and_another_raises(kind: type[nn.Module]) -> None:
    model, other, x = deployed(kind)
    assert layers(other) == 1
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecializedError, match="float64"):
        other(x.double())


@pytest.mark.parametrize("kind", [Branches, Helped])
def test_a_dtype_that_is_compared_with_that_of_weights_follows_the_model(kind: type[nn.Module]) -> None:
    model, other, x = deployed(kind)
    other.double()
    torch.testing.assert_close(other(x.double()), model.double()(x.double()), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecializedError, match="float32"):
        other(x)


@pytest.mark.parametrize("kind", [Named, Normed, Decorated])
def test_a_dtype_that_is_spelled_out_does_not(kind: type[nn.Module]) -> None:
    _, other, x = deployed(kind)
    with pytest.raises(SpecializedError, match="float64"):
        other.double()(x.double())


def test_with_a_fallback_the_original_runs() -> None:
    model, other, x = deployed(Named, keep_fallback=True, force=True)
    assert type(other[0]).forward is not Named.forward
    copied = copy.deepcopy(model).double()
    assert_same(copied(x.double()), other.double()(x.double()))


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.dtype == torch.float32 else x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Asks()

    def forward(self, *xs: Any) -> Tensor:
        return self.inner(xs[0][0] if isinstance(xs[0], list) else xs[0])


@pytest.mark.parametrize(("nested", "why"), [(True, "no argument of it"), (False, "not given under a name")])
def test_what_is_no_named_argument_is_no_guard(nested: bool, why: str) -> None:
    recorder = Recorder(Outer().eval())
    (x,) = placeholders((torch.zeros(2, 3),), "x")
    top = recorder.run(([x] if nested else x,), {}).top
    (inner,) = [e for e in top.items if isinstance(e, Event)]
    assert kinds_asked(inner, inner.questions, recorder)[0].name == "x"
    with pytest.raises(CannotCutError, match=why):
        kinds_asked(top, inner.questions, recorder)


class Ranks(Branches):
    """A shape that the rank of a value tells, and a device that is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        shape = (1,) * (y.dim() - 1) + (-1,)
        y = y - self.base.bias.view(*shape)
        if x.device.type != "cpu":
            return y
        return y + self.beside(x) if len(x.shape) == 2 else y


def test_ranks_and_devices_are_folded_and_checked() -> None:
    model, other, x = deployed(Ranks)
    assert layers(other) == 1
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecializedError, match="rank"):
        other(x[None])
