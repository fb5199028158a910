"""Functions that a method reaches through attributes and its class: what they read from outside decides as well."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.rewrite.settings.held_functions import code_of, held_functions
from reptool.testing import perturb, randomize
from tests.traps import ConvBN, image

GAIN = 2.0


def gained(y: Tensor) -> Tensor:
    """By a global."""
    return y * GAIN


class Base(nn.Module):
    """Two branches, of which one goes through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor] = gained) -> None:
        super().__init__()
        self.a, self.b, self.function = ConvBN(), ConvBN(), function

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        return self.function(self.a(x)) + self.b(x)


class Static(Base):
    """A static method."""

    @staticmethod
    def times(y: Tensor) -> Tensor:
        """By a global."""
        return y * GAIN

    def forward(self, x: Tensor) -> Tensor:
        return self.times(self.a(x)) + self.b(x)


class Property(Base):
    """A property."""

    @property
    def factor(self) -> float:
        """A global."""
        return GAIN

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.factor + self.b(x)


class Several(Base):
    """Functions in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.functions = [gained, abs]

    def forward(self, x: Tensor) -> Tensor:
        return self.functions[0](self.a(x)) + self.b(x)


class Times:
    """An object that is called."""

    def __call__(self, y: Tensor) -> Tensor:
        """By a global."""
        return y * GAIN


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a static method": Static,
    "a property": Property,
    "a function": Base,
    "a partial": lambda: Base(functools.partial(gained)),
    "a lambda": lambda: Base(lambda y: y * GAIN),
    "a list": Several,
    "an object": lambda: Base(Times()),
}


@pytest.mark.parametrize("name", MODELS)
def test_another_global_of_such_a_function_is_not_answered_in_silence(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomize(MODELS[name](), 1).double().eval(), image()
    deployed = reptool.deploy(model, x)
    assert reptool.report(deployed).regions
    torch.testing.assert_close(deployed(x), model(x))
    monkeypatch.setitem(globals(), "GAIN", 3.0)
    with pytest.raises(SpecializedError, match="GAIN"):
        deployed(x)


def test_any_change_agrees_or_raises() -> None:
    model, x = randomize(Static(), 1).double().eval(), image()
    perturb(model, reptool.deploy(model, x), x, tries=60, allow=("lenient",))


def test_what_a_method_reaches() -> None:
    static = vars(Static)["times"]
    assert held_functions(Static(), Static.forward) == [Static.forward, static]
    assert held_functions(Base(), Base.forward) == [Base.forward, gained]
    assert code_of(static) is static.__func__
    assert code_of(vars(Property)["factor"]) is vars(Property)["factor"].fget
    assert code_of(3) is None
