"""Planning ends: what is in the way of a region is a refusal, and a budget that runs out is one, too."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.api.pipeline import planning
from tests.traps import Branches, assert_same, check, codes, image, norms, ready


class Held(nn.Module):
    """A norm that a plain list holds as well: no identity can take its place."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4)
        self.kept = [self.bn]

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))  # type: ignore[no-any-return]


def test_an_island_that_is_tried_too_often_is_left_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Held()))
    assert codes(reptool.explain(model)) == {"shared"}
    monkeypatch.setattr(planning, "MAX_TRIES", 0)
    deployed, report = check(model)
    assert codes(report) == {"budget"}
    assert "no plan was found in 0 tries" in report.refusals[0].sentence
    assert (norms(deployed), len(report.regions)) == (1, 1)  # the island in which nothing was in the way is fused


class Final(type):
    """A metaclass that forbids subclasses, and counts who asks."""

    asked = 0

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
        if any(isinstance(b, Final) for b in bases):
            Final.asked += 1
            raise TypeError("final")
        return super().__new__(mcs, name, bases, body)


class Forbidden(Branches, metaclass=Final):
    """A sum of branches in a final class."""


class Registered(Branches):
    """Names its subclasses in a registry, and wants a keyword."""

    known: dict[str, type] = {}  # noqa: RUF012 - a registry

    def __init_subclass__(cls, *, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        Registered.known[f"{kind} {cls.__name__}"] = cls


class Entry(Registered, kind="net"):
    """One of them."""


@pytest.mark.parametrize("model", [Forbidden, Entry])
def test_no_code_of_the_users_hears_of_a_derived_class(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert len(report.regions) == 1
    assert type(deployed).__name__ == model.__name__
    assert Registered.known == {"net Entry": Entry}
    assert Final.asked == 0


class Slots(Branches):
    """A class with slots and an ``__init_subclass__``: it can be derived from with its own code alone."""

    __slots__ = ("gain",)

    def __init_subclass__(cls, **options: Any) -> None:
        raise ValueError("no subclasses here")

    def forward(self, x: Any) -> Any:
        return super().forward(x) * 2


def test_a_class_that_cannot_be_derived_from_is_left_and_says_why() -> None:
    model = ready(nn.Sequential(Slots(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    report = reptool.explain(model)
    refused = [r for r in report.refusals if r.code is Code.METHOD]
    assert refused, report
    assert "no subclass can be made of Slots" in refused[0].sentence
    deployed = reptool.deploy(model)
    assert_same(model(image()), deployed(image()))
    assert norms(deployed) < norms(model)


def test_only_what_changed_is_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.plan.select import Chooser

    chosen: list[int] = []
    own = Chooser._island

    def counted(self: Any, island: Any) -> Any:
        chosen.append(len(island))
        return own(self, island)

    monkeypatch.setattr(Chooser, "_island", counted)
    blocks = [Held(4) if i == 0 else nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for i in range(8)]
    model = ready(nn.Sequential(*[m for block in blocks for m in (block, nn.ReLU())]))
    report = reptool.explain(model, image(2, 4, 10, 8))
    assert (len(report.regions), codes(report)) == (7, {"shared"})
    assert len(chosen) == 9  # every island once, and that of the refused region once more
