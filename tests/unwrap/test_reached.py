"""A wrapper stays where somebody could see a difference that raises nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError


class Block(nn.Module):
    """A layer and a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 4), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor


class Net(nn.Module):
    """Two blocks with an activation between them."""

    def __init__(self, kind: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.first, self.second = kind(), kind()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Counting(Net):
    """Asks what its parts are, in a method that nobody traced."""

    def count(self) -> int:
        return sum(isinstance(m, Block) for m in self.modules())


class Deciding(Counting):
    """Asks it in its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.count() else x


KNOWN = ["plain"]


class Switched(Block):
    """Runs only where its name is among those that are active, and reads a list of the module around it."""

    def __init__(self, active: list[str]) -> None:
        super().__init__()
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        for name in self.active:
            y = y * self.factor if name in KNOWN else y
        return y


class Sharing(nn.Sequential):
    """Two parts that hold one list."""

    def __init__(self, held: bool = False) -> None:
        active = ["plain"]
        super().__init__(Switched(active), nn.Tanh(), Switched(active))
        if held:
            self.active = active


class Holding(Net):
    """Keeps a part in a list as well."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [self.first]


class Twice(Net):
    """One part under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.first


class Named(Block):
    """Has a number that the layer calls alike and that is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = 7


class Overridden(Block):
    """Trains in its own way."""

    def train(self, mode: bool = True) -> Any:
        return super().train(mode)


class Configured(Block):
    """Reads an object that somebody else may hold."""

    class Config:
        scale = 2.0

    config = Config()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.config.scale


class Buffered(Block):
    """Has state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))


class Called(Block):
    """Does something in its call."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x)


def found(model: nn.Module, **options: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Where layers took the places of wrappers, and where not and why."""
    report = reptool.report(reptool.deploy(model.eval(), torch.randn(2, 4), unwrap=True, **options))
    return report.unwrapped, report.wrapped


def test_nothing_is_in_the_way_of_a_plain_block() -> None:
    assert found(Net()) == ({"first": "Block", "second": "Block"}, {})


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Deciding(), "Deciding.count asks of modules: isinstance(m, Block)"),
        (Net(Named), "its in_features is 7, that of the layer 4"),
        (Net(Overridden), "it has a train of its own"),
        (Net(Buffered), "it has parameters or buffers beside those of the layer"),
        (Net(Configured), "config, which could change unnoticed"),
    ],
)
def test_it_stays(model: nn.Module, why: str) -> None:
    done, left = found(model)
    assert not done
    assert set(left) == {"first", "second"}
    assert all(why in told for told in left.values()), left


def test_a_method_that_asks_what_is_gone_raises() -> None:
    deployed = reptool.deploy(Counting().eval(), torch.randn(2, 4), unwrap=True)
    assert isinstance(deployed.first, nn.Linear)
    with pytest.raises(SpecializedError, match="count"):
        deployed.count()


def test_a_list_that_only_wrappers_hold_goes_with_all_of_them() -> None:
    assert set(found(Sharing())[0]) == {"0", "2"}
    done, left = found(Sharing(held=True))
    assert not done
    assert all("active, which could change unnoticed" in told for told in left.values())


def test_the_layer_goes_on_to_check_what_lies_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Sharing().eval(), torch.randn(2, 4)
    deployed = reptool.deploy(model, x, unwrap=True)
    torch.testing.assert_close(deployed(x), model(x))
    monkeypatch.setitem(globals(), "KNOWN", [])
    with pytest.raises(SpecializedError, match="KNOWN"):
        deployed(x)


@pytest.mark.parametrize("kind", [Holding, Twice])
def test_what_is_held_in_several_places_stays(kind: type[Net]) -> None:
    done, left = found(kind())
    assert "first" not in done
    assert "held in several places" in left["first"]


def test_a_hook_keeps_what_it_watches() -> None:
    model = Net()
    model.first.register_forward_hook(lambda *_: None)
    done, left = found(model)
    assert "first" not in done
    assert left.get("first", "hooks watch it") == "hooks watch it"
    assert "second" in done


def test_a_layer_that_does_the_work_of_others_as_well_stays_where_it_is() -> None:
    class Behind(Net):
        def __init__(self) -> None:
            super().__init__(lambda: nn.Sequential(nn.Linear(4, 4)))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.norm(self.first(x))))

    done, _ = found(Behind())
    assert done == {"second": "Sequential"}


def test_a_module_with_a_call_of_its_own_stays() -> None:
    assert "first" not in found(Net(Called))[0]


def test_containers_of_the_callers_own_object_keep_the_wrapper() -> None:
    class Listed(Block):
        def __init__(self) -> None:
            super().__init__()
            self.factors = [2.0]

        def forward(self, x: Tensor) -> Tensor:
            for factor in self.factors:
                x = self.layer(x) * factor
            return x

    assert set(found(Net(Listed))[0]) == {"first", "second"}
    done, left = found(Net(Listed), inplace=True)
    assert not done
    assert "first.factors" in left["first"]


@pytest.mark.parametrize(
    ("inner", "x"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(2, 4)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), torch.randn(2, 4, 5, 5)),
    ],
)
def test_the_number_of_axes_that_a_norm_takes_goes_on_to_the_layer(inner: Callable[[], nn.Module], x: Tensor) -> None:
    deployed = reptool.deploy(Net(inner).eval(), x, unwrap=True)
    assert set(reptool.report(deployed).unwrapped) == {"first", "second"}
    with pytest.raises(reptool.ReptoolError):
        deployed.first(x[0])
