"""State that decides, wherever it is kept: two runs show it."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from tests.traps import ConvBN, check, codes, norms, ready


class TwoNorms(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return (self.bn if self.pick() else self.other)(self.conv(x))

    def pick(self) -> Any:
        raise NotImplementedError


class InList(TwoNorms):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def pick(self) -> Any:
        self.seen.append(1)
        return len(self.seen) % 2


class InDeque(TwoNorms):
    def __init__(self) -> None:
        super().__init__()
        self.turns = collections.deque([0, 1])

    def pick(self) -> Any:
        self.turns.rotate(1)
        return self.turns[0]


class InIterator(TwoNorms):
    def __init__(self) -> None:
        super().__init__()
        self.turns = itertools.cycle([0, 1])

    def pick(self) -> Any:
        return next(self.turns)


class InFlag(TwoNorms):
    flip = False

    def pick(self) -> Any:
        self.flip = not self.flip
        return self.flip


class InClass(TwoNorms):
    calls = 0

    def pick(self) -> Any:
        InClass.calls += 1
        return InClass.calls % 2


class InDictionary(TwoNorms):
    def pick(self) -> Any:
        self.__dict__["turn"] = 1 - self.__dict__.get("turn", 0)
        return self.turn


class InProperty(TwoNorms):
    @property
    def norm(self) -> nn.Module:
        self.turn = getattr(self, "turn", 0) + 1
        return self.bn if self.turn % 2 else self.other

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv(x))


def three_times(model: nn.Module, x: Any) -> Any:
    InClass.calls = 0
    return [model(x) for _ in range(3)]


@pytest.mark.parametrize("model", [InList, InDeque, InIterator, InFlag, InClass, InDictionary, InProperty])
def test_a_norm_chosen_by_state_stays(model: type[TwoNorms]) -> None:
    deployed, report = check(ready(model()), calls={"three times": three_times})
    assert norms(deployed) == 2
    assert "specialized" in codes(report)


def test_state_that_decides_nothing_is_no_reason() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = ConvBN()
            self.log: list[int] = []

        def forward(self, x: Any) -> Any:
            self.log.append(1)
            return self.block(x)

    assert norms(check(ready(Counts()))[0]) == 0


class Cached(ConvBN):
    """A table that is made in the first call and kept for the next ones."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(6, 4))
        self.register_buffer("index", torch.tensor([0, 2, 1, 3]))
        self.kept: dict[str, Any] = {}

    def row(self, name: str) -> Any:
        if name not in self.kept:
            self.kept[name] = self.table[0][self.index]
        return self.kept[name]

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x)).relu() * self.row("a")[:, None, None].sigmoid()


class Says(ConvBN):
    """A message holds the name of a symbolic value, and names depend on what was traced before."""

    def forward(self, x: Any) -> Any:
        torch._assert(x.ndim == 4, f"wanted four axes, not {x.ndim}")
        return self.bn(self.conv(x))


@pytest.mark.parametrize("model", [Cached, Says])
def test_what_differs_in_nothing_but_names_is_no_state(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 0
    assert "specialized" not in codes(report)


class Caches(nn.Module):
    """Keeps what it makes of a parameter for the next call; a scale behind it goes into its last layer."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.cache = form, dict[str, Any]()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.table = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("index", torch.tensor([1, 0, 1]))

    def bias(self) -> Any:
        if "bias" not in self.cache:
            self.cache["bias"] = self.table[self.index].mean(0)
        return self.cache["bias"]

    def forward(self, x: Any) -> Any:
        bias = self.bias()
        bias = bias.view(1, -1, 1, 1) if self.form == "used" else bias.reshape(1, 4).unsqueeze(-1).unsqueeze(-1) * 2
        return self.last(torch.sigmoid(self.first(x) + bias) * bias.cos())


class Scaled(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.part, self.gamma = Caches(form), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Any) -> Any:
        return x[:, :1] + self.part(x) * self.gamma


@pytest.mark.parametrize("form", ["used", "made into more"])
@pytest.mark.parametrize("shown", [True, False])
def test_a_constant_that_is_kept_for_the_next_call_is_no_state(form: str, shown: bool) -> None:
    _, report = check(ready(Scaled(form)), shown=[shown])
    assert "specialized" not in codes(report)
    assert any("scale" in r.rules and r.layer == "part.last" for r in report.regions)


class TellsOfWeights(nn.Module):
    """Code that asks a weight which was cast like the input for its dtype keeps no state."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(3, 3), nn.Parameter(torch.rand(3) + 1)

    def forward(self, x: Any) -> Any:
        scale = self.scale.to(x.dtype)
        return self.first(x) * scale.norm().to(scale.dtype)


def test_what_a_constant_tells_is_no_state() -> None:
    _, report = check(ready(TellsOfWeights()), torch.randn(4, 3, dtype=torch.float64))
    assert not codes(report)
