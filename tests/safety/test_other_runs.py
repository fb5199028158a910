"""Methods that were not called: what they decide by is guarded, or their gates stand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError
from tests.traps import ConvBN, assert_same, image, norms, ready

SWITCH = [False]


class Decides(ConvBN):
    """Methods that run the region whole, as long as nothing is set otherwise."""

    raw = False

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []
        self.nested = {"skip": {"norm": False}}

    def by_attribute(self, x: Any) -> Any:
        y = self.conv(x)
        return y if self.raw else self.bn(y)

    def by_argument(self, x: Any, raw: bool = False) -> Any:
        y = self.conv(x)
        return y if raw else self.bn(y)

    def by_list(self, x: Any) -> Any:
        y = self.conv(x)
        return self.bn(y) if not self.taken else y

    def by_item(self, x: Any) -> Any:
        y = self.conv(x)
        return y if self.nested["skip"]["norm"] else self.bn(y)

    def by_global(self, x: Any) -> Any:
        y = self.conv(x)
        return y if SWITCH[0] else self.bn(y)

    def through_another(self, x: Any) -> Any:
        return self.by_attribute(x).relu()

    def take(self) -> None:
        """Sets what `by_list` reads: a run of it must not be seen by the next."""
        self.taken.append(1)
        self.nested["skip"]["norm"] = True

    def leave(self) -> None:
        del self.bn


def switched(call: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Any]:
    def run(model: Any, x: Tensor) -> Any:
        SWITCH[0] = True
        try:
            return call(model, x)
        finally:
            SWITCH[0] = False

    return run


def after(name: str, *change: Any) -> Callable[[Any, Tensor], Any]:
    def run(model: Any, x: Tensor) -> Any:
        if change:
            setattr(model, *change)
        else:
            model.take()
        return getattr(model, name)(x)

    return run


OTHERWISE: dict[str, Callable[[Any, Tensor], Any]] = {
    "by_attribute": after("by_attribute", "raw", True),
    "by_argument": lambda m, x: m.by_argument(x, raw=True),
    "by_list": after("by_list"),
    "by_item": after("by_item"),
    "by_global": switched(lambda m, x: m.by_global(x)),
    "through_another": after("through_another", "raw", True),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_method_that_is_let_through_decides_as_it_did_or_raises(name: str) -> None:
    model, x = ready(Decides()), image()
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert_same(getattr(model, name)(x), getattr(deployed, name)(x), name)
    with pytest.raises(SpecializedError):
        OTHERWISE[name](copy.deepcopy(deployed), x)


@pytest.mark.parametrize("name", OTHERWISE)
def test_with_a_fallback_it_decides_as_the_original(name: str) -> None:
    model, x = ready(Decides()), image()
    deployed: Any = reptool.deploy(model, x, keep_fallback=True, force=True)
    for call in (lambda m, x: getattr(m, name)(x), OTHERWISE[name]):
        try:
            given = call(copy.deepcopy(deployed), x)
        except SpecializedError:
            continue
        assert_same(call(copy.deepcopy(model), x), given, name)


class Adapter(nn.Module):
    """Layers in a row beside another, and methods that ask before they run them."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 8), nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def asks(self, x: Tensor) -> Tensor:
        return self.down(x) if x.shape[0] > 1 else self.base(x)

    def gives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.down(x)
        return y, self.base(x) + self.up(y)


class Asking(Adapter):
    gives = None  # type: ignore[assignment]


def test_a_method_that_asks_keeps_no_layers_apart_but_one_that_gives_what_lies_between_does() -> None:
    x = torch.randn(2, 8, dtype=torch.float64)
    for kind, layers in ((Asking, 1), (Adapter, 3)):
        model = ready(kind())
        deployed: Any = reptool.deploy(model, x)
        assert sum(isinstance(m, nn.Linear) for m in deployed.modules()) == layers
        assert_same(model(x), deployed(x))
    with pytest.raises(SpecializedError):
        reptool.deploy(ready(Asking()), x).asks(x)


class Many(nn.Module):
    """Blocks of one class."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(count)))

    def forward(self, x: Any) -> Any:
        return self.blocks(x)


class Block(ConvBN):
    """A block that no other code runs in part, and one method that cannot be followed."""

    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3))

    def scaled(self, x: Any) -> Any:
        return self.conv(x) * self.conv.weight.cpu().numpy().max()


def test_what_is_said_of_a_method_is_said_of_all_modules_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.safety.other_runs import Runs

    ran: list[str] = []
    run = Runs.run
    monkeypatch.setattr(Runs, "run", lambda self, state, path, *more: ran.append(path) or run(self, state, path, *more))
    model, x = ready(Many(6)), image()
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert len(ran) == 1
    for block in deployed.blocks:
        with pytest.raises(SpecializedError):
            block.scaled(x)


class Numbers(ConvBN):
    """Methods that turn weights into numbers of Python."""

    def number(self) -> float:
        return float(self.conv.weight.square().sum())

    def word(self) -> str:
        return f"{self.conv.weight.norm():.6f}"

    def array(self) -> Any:
        return self.conv.weight.detach().numpy().sum()

    def compared(self) -> bool:
        return bool((self.conv.weight > 0.01).all())

    def written(self, text: str) -> str:
        return text.format(self.conv.weight.norm().item())

    def channels(self) -> int:
        return int(self.conv.weight.shape[0])


@pytest.mark.parametrize("name", ["number", "word", "array", "compared", "written"])
def test_numbers_of_weights_that_are_others_now_are_not_given_out(name: str) -> None:
    deployed: Any = reptool.deploy(ready(Numbers()), image())
    assert norms(deployed) == 0
    assert deployed.channels() == 4
    with pytest.raises(SpecializedError):
        getattr(deployed, name)(*["{}"] * (name == "written"))


class Kept(ConvBN):
    """A flag that leaves the norm out, in a model that holds an object of which nobody knows how to put it back."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = SimpleNamespace(scale=2.0)

    def forward(self, x: Any, twice: bool = False, raw: bool = False) -> Any:
        y = self.conv(x) if raw else self.bn(self.conv(x))
        return y * self.settings.scale if twice else y.relu()


def test_a_copy_that_is_made_again_is_known_again() -> None:
    model, x = ready(Kept()), image()
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert_same(model(x, twice=True), deployed(x, twice=True))
    with pytest.raises(SpecializedError, match="raw"):
        deployed(x, raw=True)


class Asks(ConvBN):
    """A block that runs its norm whatever it is given, unless something that it holds says otherwise."""

    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3))
        self.raw, self.taken, self.inner = False, [0], nn.ReLU()
        self.register_buffer("gate", torch.zeros(1))

    def forward(self, x: Any, mode: Any = None) -> Any:
        y = self.conv(x)
        if mode and (self.raw or sum(self.taken) or self.gate.item() or isinstance(self.inner, nn.Identity)):
            return self.inner(y)
        return self.inner(self.bn(y))


class Quiet(Asks):
    """One that asks for no number of a tensor."""

    def forward(self, x: Any, mode: Any = None) -> Any:
        y = self.conv(x)
        return self.inner(y) if mode and (self.raw or isinstance(self.inner, nn.Identity)) else self.inner(self.bn(y))


OTHER: dict[str, Callable[[Any], object]] = {
    "attribute": lambda b: setattr(b, "raw", True),
    "list": lambda b: b.taken.append(1),
    "number": lambda b: b.gate.fill_(1),
    "class": lambda b: setattr(b, "inner", nn.Identity()),
}


def stack(kind: type[nn.Module], count: int) -> nn.Module:
    model = Many(0)
    model.blocks.extend(kind() for _ in range(count))
    return model


@pytest.mark.parametrize("kind", [Asks, Quiet])
@pytest.mark.parametrize("name", OTHER)
def test_a_block_that_differs_from_the_others_is_asked_itself(name: str, kind: type[nn.Module]) -> None:
    model, x = ready(stack(kind, 3)), image()
    OTHER[name](model.blocks[1])
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    for block, given in zip(model.blocks, deployed.blocks, strict=True):
        for mode in (None, True, False):
            try:
                got = given(x, mode)
            except SpecializedError:
                continue
            assert_same(block(x, mode), got, name)


def test_blocks_that_are_alike_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from reptool.safety.other_runs import Runs

    ran: list[str] = []
    run = Runs.run
    monkeypatch.setattr(Runs, "run", lambda self, state, path, *more: ran.append(path) or run(self, state, path, *more))
    model, x = ready(stack(Quiet, 5)), image()
    model.blocks[3].raw = True
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert set(ran) == {"blocks.0", "blocks.3"}
    assert_same(model.blocks[4](x, True), deployed.blocks[4](x, True))
    with pytest.raises(SpecializedError):
        deployed.blocks[3](x, True)
