"""A mode that the model offers still works after deploying: no method is written for one value of a switch."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.capture.optional_arguments import offered
from reptool.ir.trace import Event
from tests.traps import codes, image, ready


class TwoHeads(nn.Module):
    """A sum of two heads in a forward that also says how the answer looks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head, self.second = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor, as_dict: bool | None = None) -> dict[str, Tensor] | tuple[Tensor, Tensor]:
        as_dict = True if as_dict is None else as_dict
        kept = torch.relu(self.conv(x))
        pooled = kept.mean((2, 3))
        logits = (self.head(pooled) + self.second(pooled)) / 2
        return {"logits": logits, "kept": kept} if as_dict else (logits, kept)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.tensor([1.5])), nn.Parameter(torch.tensor([0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.shift


class Stage(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.scale = nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8), Scale()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(torch.relu(self.norm(self.conv(x))))


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Stage(3), Stage(8), Stage(8)])

    def forward(self, x: Tensor, all_states: bool = False) -> tuple[Tensor, ...]:
        states: tuple[Tensor, ...] = ()
        for stage in self.stages:
            if all_states:
                states = (*states, x)
            x = stage(x)
        return (x, *states)


class Handing(nn.Module):
    """A model that hands a switch on to its encoder, which then gives the values between its stages."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Stages()

    def forward(self, x: Tensor, all_states: bool | None = None) -> tuple[Tensor, ...]:
        return self.encoder(x, all_states=False if all_states is None else all_states)


@pytest.mark.parametrize("shown", [True, False])
def test_switch_of_the_model_still_works(shown: bool) -> None:
    model = ready(TwoHeads())
    deployed = reptool.deploy(model, image() if shown else None)
    for x in (image(), image(2, 3, 13, 11)):
        torch.testing.assert_close(deployed(x), model(x))
        for flag in (True, False):
            torch.testing.assert_close(deployed(x, as_dict=flag), model(x, as_dict=flag))
    if shown:
        assert "specialized" in codes(reptool.report(deployed))


def test_switch_that_example_inputs_set_may_be_fixed() -> None:
    model = ready(TwoHeads())
    deployed = reptool.deploy(model, {"x": image(), "as_dict": False})
    torch.testing.assert_close(deployed(image(), as_dict=False), model(image(), as_dict=False))
    assert "specialized" not in codes(reptool.report(deployed))


@pytest.mark.parametrize("shown", [True, False])
def test_switch_that_is_handed_on_still_works(shown: bool) -> None:
    model = ready(Handing())
    deployed = reptool.deploy(model, image() if shown else None)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    for x in (image(), image(2, 3, 13, 11)):
        for flag in (None, True, False):
            torch.testing.assert_close(deployed(x, all_states=flag), model(x, all_states=flag))


def test_what_is_offered() -> None:
    def forward(self: Any, x: Any, flag: bool | None = None, mask: Tensor | None = None, bare: Any = None) -> None:
        pass

    has = inspect.signature(forward).parameters
    top = Event(nn.Identity(), "", "forward", None)
    inner = Event(nn.Identity(), "a", "forward", top)
    assert offered(top, has["flag"], None, False, "")
    assert not offered(top, has["flag"], None, True, "")
    assert offered(top, has["flag"], None, True, "part")
    assert offered(inner, has["flag"], None, True, "")
    assert not offered(inner, has["flag"], None, False, "")
    assert offered(inner, has["bare"], False, True, "")
    assert not offered(inner, has["bare"], None, True, "")
    assert not offered(inner, has["mask"], None, True, "")


class Answer:
    """What a part gives back, of a class that nobody can take apart."""

    def __init__(self, last: Tensor, states: tuple[Tensor, ...] | None) -> None:
        self.last, self.states = last, states


class Closed(nn.Module):
    """A part whose code cannot be followed: it asks for the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, states: bool = False) -> Answer:
        y = self.norm(self.conv(x))
        y = y if float(y.detach().sum()) < 1e9 else -y
        return Answer(y, (x, y) if states else None)


class Unread(nn.Module):
    """Hands on what a part gave, of which it reads one attribute and gives out another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.part = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), Closed()

    def forward(self, x: Tensor, states: bool | None = None) -> tuple[Tensor, Any]:
        given = self.part(torch.relu(self.norm(self.stem(x))), states=bool(states))
        return given.last + 1, given.states


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Unread()

    def forward(self, x: Tensor, states: bool | None = None) -> tuple[Tensor, Any]:
        return self.inner(x, states=states)


@pytest.mark.parametrize("shown", [True, False])
def test_a_switch_beside_an_attribute_that_is_only_given_out_still_works(shown: bool) -> None:
    model, x = ready(Reads()), image()
    deployed = reptool.deploy(model, x if shown else None)
    assert isinstance(deployed.inner.norm, nn.Identity)
    for flag in (None, True, False):
        torch.testing.assert_close(deployed(x, states=flag), model(x, states=flag))
