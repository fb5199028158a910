"""Values that code reads off a class, whose reads no module sees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb, randomize
from tests.traps import ConvBN, image


class Base(nn.Module):
    """Two branches, one with a gain that the class holds."""

    gain = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = ConvBN(), ConvBN()

    def scaled(self, y: Tensor) -> Tensor:
        """By the gain."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        return self.scaled(self.a(x)) + self.b(x)


class OfType(Base):
    """``type(self).gain``."""

    def scaled(self, y: Tensor) -> Tensor:
        return y * type(self).gain


class OfClass(Base):
    """``self.__class__.gain``."""

    def scaled(self, y: Tensor) -> Tensor:
        return y * self.__class__.gain


class ByName(Base):
    """``getattr(type(self), "gain")``."""

    def scaled(self, y: Tensor) -> Tensor:
        return y * getattr(type(self), "gain")  # noqa: B009


class Above(Base):
    """``super().gain``."""

    def scaled(self, y: Tensor) -> Tensor:
        return y * super().gain


class InClassMethod(Base):
    """``cls.gain``, two class methods away."""

    @classmethod
    def read(cls) -> float:
        """The gain."""
        return cls.gain

    @classmethod
    def times(cls, y: Tensor) -> Tensor:
        """By the gain."""
        return y * cls.read()

    def scaled(self, y: Tensor) -> Tensor:
        return self.times(y)


class InProperty(Base):
    """A property that reads the class."""

    @property
    def factor(self) -> float:
        """The gain."""
        return type(self).gain

    def scaled(self, y: Tensor) -> Tensor:
        return y * self.factor


class OfAChild(nn.Module):
    """The class of a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([OfType(), OfType()])

    def forward(self, x: Tensor) -> Tensor:
        """The first branches, each by the gain of its class."""
        return self.parts[0].a(x) * type(self.parts[0]).gain + self.parts[1].a(x)


ALL = [OfType, OfClass, ByName, Above, InClassMethod, InProperty, OfAChild]


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_another_value_of_the_class_is_not_answered_in_silence(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomize(kind(), 1).double().eval(), image()
    deployed = reptool.deploy(model, x)
    assert len(reptool.report(deployed).regions) == 1
    torch.testing.assert_close(deployed(x), model(x))
    monkeypatch.setattr(Base, "gain", 3.0)
    with pytest.raises(SpecializedError, match="gain"):
        deployed(x)


def test_a_value_that_only_the_deployed_class_has_is_seen() -> None:
    model, x = randomize(OfType(), 1).double().eval(), image()
    deployed = reptool.deploy(model, x)
    type(deployed).gain = 3.0  # type: ignore[attr-defined]
    try:
        with pytest.raises(SpecializedError, match="gain"):
            deployed(x)
    finally:
        del type(deployed).gain  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [OfType, InClassMethod], ids=lambda k: k.__name__)
def test_any_change_agrees_or_raises(kind: type[nn.Module]) -> None:
    model, x = randomize(kind(), 1).double().eval(), image()
    perturb(model, reptool.deploy(model, x), x, tries=60, allow=("lenient",))


class Unrelated(Base):
    """Names its gain, and no class."""

    def scaled(self, y: Tensor) -> Tensor:
        return y * self.gain


def test_a_class_that_no_code_mentions_is_read_by_the_module_alone() -> None:
    from reptool.rewrite.settings.of_classes import class_settings

    class Event:
        module, path = Unrelated(), ""

    assert not list(class_settings(Event(), Unrelated.scaled))  # type: ignore[arg-type]
    Event.module = OfType()
    assert {s.name for s in class_settings(Event(), OfType.scaled)} == {"__class__.gain"}  # type: ignore[arg-type]
