"""Other ways to call a method than the one that was seen, and attributes set after deploying."""

from __future__ import annotations

import copy
import enum
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reptool
from reptool.errors import SpecializedError
from reptool.testing import perturb
from tests.traps import Branches, ConvBN, assert_same, check, image, norms, ready


class Variadic(ConvBN):
    def forward(self, *xs: Any) -> Any:
        y = self.conv(xs[0])
        return self.bn(y) if len(xs) == 1 else self.bn(y) + y * xs[1].mean()


class Given(ConvBN):
    def forward(self, x: Any, gate: Any = None) -> Any:
        y = self.conv(x)
        return y if gate is None else self.bn(y) * gate


def test_another_number_of_arguments_is_right_or_raises() -> None:
    check(ready(Variadic()), calls={"one": lambda m, x: m(x), "two": lambda m, x: m(x, x)}, raises=["two"])


def test_an_argument_left_out_is_right_or_raises() -> None:
    x, gate = image(), torch.ones(1, dtype=torch.float64)
    calls: Any = {"given": lambda m, v: m(*v), "left out": lambda m, v: m(v[0])}
    deployed, _ = check(ready(Given()), (x, gate), calls, raises=["left out"])
    assert norms(deployed) == 0


class Task(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.task, self.raw, self.mode = 0, False, "norm"

    def forward(self, x: Any) -> Any:
        return self.bns[self.task](self.conv(x))


class Flag(Task):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y if self.raw else self.bn(y)


class Word(Task):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.bn(y) if self.mode == "norm" else y


def put(**values: Any) -> Any:
    def call(model: nn.Module, x: Any) -> Any:
        for name, value in values.items():
            setattr(model, name, value)
        return model(x)

    return call


@pytest.mark.parametrize(("model", "other"), [(Task, {"task": 2}), (Flag, {"raw": True}), (Word, {"mode": "features"})])
def test_an_attribute_set_afterwards_is_right_or_raises(model: type[Task], other: dict[str, Any]) -> None:
    _, report = check(ready(model()), calls={"as it was": put(), "set": put(**other)}, raises=["set"])
    assert len(report.regions) == 1


def test_an_attribute_that_does_not_matter_may_be_set() -> None:
    class Harmless(Task):
        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x))
            return y.relu() if self.raw else y

    deployed, _ = check(ready(Harmless()), calls={"set": put(raw=True)})
    assert isinstance(deployed.bn, nn.Identity)


class Collected(Branches):
    """What its forward does is said by a list, a dictionary, a set, a word of the class, or a configuration."""

    which = "a"

    def __init__(self) -> None:
        super().__init__()
        self.names, self.options, self.on = ["a", "b"], {"b": True}, {"a", "b"}
        self.settings, self.count = SimpleNamespace(both=True), 2


class ByNames(Collected):
    def forward(self, x: Any) -> Any:
        return self.bn(sum(getattr(self, n)(x) for n in self.names))


class ByCount(Collected):
    def forward(self, x: Any) -> Any:
        return self.bn(sum(m(x) for m in [self.a, self.b][: self.count]))


class ByOptions(Collected):
    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)) if self.options["b"] else self.a(x)


class BySet(Collected):
    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)) if "b" in self.on else self.a(x)


class ByConfiguration(Collected):
    def forward(self, x: Any) -> Any:
        return self.bn(self.a(x) + self.b(x)) if self.settings.both else self.a(x)


class ByClass(Task):
    which: Any = "a"

    def __init__(self) -> None:
        super().__init__()
        self.known = nn.ModuleDict({"a": nn.BatchNorm2d(4), "b": nn.BatchNorm2d(4)})

    def forward(self, x: Any) -> Any:
        return self.known[self.which](self.conv(x))


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width = 1.0
        self.norms = nn.ModuleDict({"2": nn.BatchNorm2d(4), "4": nn.BatchNorm2d(4)})

    def forward(self, x: Any) -> Any:
        return self.norms[str(int(4 * self.width))](x)


class ByWidth(ConvBN):
    def __init__(self) -> None:
        super().__init__(Half())


def _width(model: Any, x: Any) -> Any:
    model.bn.width = 0.5
    return model(x)


def _configured(model: Any, x: Any) -> Any:
    model.settings.both = False
    return model(x)


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (ByNames, put(names=["a"])),
        (ByNames, lambda m, x: (m.names.append("b"), m(x))[1]),
        (ByCount, put(count=1)),
        (ByOptions, put(options={"b": False})),
        (BySet, put(on={"a"})),
        (ByConfiguration, _configured),
        (ByClass, put(which="b")),
        (ByWidth, _width),
    ],
)
def test_settings_of_every_kind_are_right_or_raise(model: type[nn.Module], call: Any) -> None:
    made = ready(model())
    _, report = check(made, calls={"as it was": lambda m, x: copy.deepcopy(m)(x)})
    assert len(report.regions) == 1
    deployed, x = reptool.deploy(made), image()
    changed = copy.deepcopy(made)
    wanted = call(changed, x)
    assert not torch.allclose(wanted, made(x))
    with pytest.raises(SpecializedError):
        call(deployed, x)


class Between(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.training:
            self.loss = y.square().mean()
        return self.bn(y)


class Dropped(Branches):
    def drop(self, x: Any) -> Any:
        return x * 0.5 if self.training else x

    def forward(self, x: Any) -> Any:
        return self.drop(self.a(x)) + self.b(x)


class Apart(ConvBN):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x)).relu()
        return (y, y.mean()) if self.training else y


@pytest.mark.parametrize("model", [Between, Dropped])
def test_training_that_uses_values_inside_of_a_region_raises(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert len(report.regions) == 1
    with pytest.raises(SpecializedError, match="training"):
        deployed.train()(image())


def test_training_that_uses_values_outside_of_regions_goes_on() -> None:
    deployed, _ = check(ready(Apart()))
    assert len(deployed.train()(image())) == 2


class Mode(enum.Enum):
    BOTH = "both"
    PLAIN = "plain"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class ByMember(ConvBN):
    """A member of an enumeration decides, under a first parameter of another name."""

    def __init__(self, mode: enum.Enum) -> None:
        super().__init__()
        self.mode = mode

    def forward(this, x: Any) -> Any:
        y = F.conv2d(x, this.conv.weight, this.conv.bias)
        return this.bn(y) * 1.5 if this.mode in (Mode.BOTH, Level.LOW) else y


class ByArgument(ConvBN):
    def forward(this, x: Any, mode: enum.Enum = Level.LOW) -> Any:
        return this.bn(this.conv(x)) * 1.5 if mode is Level.LOW else this.conv(x)


@pytest.mark.parametrize(("first", "second"), [(Mode.BOTH, Mode.PLAIN), (Level.LOW, Level.HIGH)])
@pytest.mark.parametrize("example", [True, False])
def test_members_of_enumerations_that_decide_are_guarded(first: enum.Enum, second: enum.Enum, example: bool) -> None:
    model = ready(ByMember(first))
    deployed = pickle.loads(pickle.dumps(reptool.deploy(model, image() if example else None)))
    assert norms(deployed) == 0
    assert_same(model(image()), deployed(image()))
    deployed.mode = second
    with pytest.raises(SpecializedError, match=r"self\.mode"):
        deployed(image())


def test_a_member_as_an_argument_is_the_one_that_was_seen() -> None:
    model = ready(ByArgument())
    deployed = pickle.loads(pickle.dumps(reptool.deploy(model, image())))
    assert norms(deployed) == 0
    assert_same(model(image()), deployed(image()))
    with pytest.raises(SpecializedError, match="mode"):
        deployed(image(), Level.HIGH)


# --- tensors that are no weights, attributes of classes
WIDTH = torch.full((4, 1, 1), 0.5)


class Tensors(nn.Module):
    """Tensors that are neither parameters nor buffers: as attributes, in containers, as globals."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.scale, self.listed, self.raw = (
            torch.full((4, 1, 1), 2.0),
            [torch.full((4, 1, 1), 3.0)],
            torch.tensor(False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) * self.scale * self.listed[0] * WIDTH
        return y if self.raw else self.norm(y).relu()


@pytest.mark.parametrize(
    "change",
    [
        "m.scale = m.scale * 2",
        "m.scale.mul_(2)",
        "m.listed[0].mul_(2)",
        "m.listed[0] = m.listed[0] * 2",
        "m.raw.fill_(True)",
        "m.raw = ~m.raw",
        "type(model).forward.__globals__['WIDTH'].mul_(2)",
    ],
)
def test_a_tensor_that_is_no_weight_is_a_setting(change: str) -> None:
    model = ready(Tensors())
    deployed = reptool.deploy(model, image())
    assert perturb(model, deployed, image(), changes=[change]).raised.total() == 1
    assert_same(model(image()), copy.deepcopy(deployed)(image()))


class Powered(nn.Module):
    """A layer that computes its weight as its class says."""

    power = 1

    def __init__(self) -> None:
        super().__init__()
        self.base, self.scale = nn.Parameter(torch.rand(4, 3, 3, 3)), nn.Parameter(torch.rand(4, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.base * self.scale**self.power)


@pytest.mark.parametrize("behind", [nn.ReLU, lambda: nn.BatchNorm2d(4)])
def test_an_attribute_of_a_class_that_a_layer_took_the_place_of_is_guarded(behind: Any) -> None:
    model = ready(nn.Sequential(Powered(), behind()))
    deployed = reptool.deploy(model)
    assert_same(model(image()), pickle.loads(pickle.dumps(deployed))(image()))
    assert perturb(model, deployed, image(), changes=["type(model[0]).power = 2"]).raised.total() == 1


class Late(ConvBN):
    """A flag that is read when a region is complete, while a helper method's value inside of it is still held."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.raw = nn.Conv2d(4, 4, 1), False

    def stem(self, x: Any) -> Any:
        return self.bn(self.conv(x))

    def forward(self, x: Any) -> Any:
        y = self.stem(x)
        z = self.last(y)
        return y.relu() if self.raw else z


class Emits(ConvBN):
    """A value inside of a region that goes through a method which may change it."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.callbacks = False, list[Any]()

    def emit(self, y: Any) -> Any:
        for callback in self.callbacks:
            y = callback(y)
        return y * 2 if self.raw else y

    def forward(self, x: Any) -> Any:
        return self.bn(self.emit(self.conv(x)))


class Tap(nn.Module):
    """It hands on what it is given."""

    raw = False

    def forward(self, x: Any) -> Any:
        return x * 2 if self.raw else x


class Tapped(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.tap = Tap()

    def forward(self, x: Any) -> Any:
        return self.bn(self.tap(self.conv(x)))


CHANGES = {
    "late": (Late, lambda m: setattr(m, "raw", True)),
    "through a method": (Emits, lambda m: setattr(m, "raw", True)),
    "a list": (Emits, lambda m: m.callbacks.append(torch.tanh)),
    "through a module": (Tapped, lambda m: setattr(m.tap, "raw", True)),
    "hook": (Tapped, lambda m: m.tap.register_forward_hook(lambda *a: a[-1] * 2)),
    "another": (Tapped, lambda m: setattr(m, "tap", nn.Tanh())),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_decides_over_a_value_inside_of_a_region_is_watched(case: str) -> None:
    kind, change = CHANGES[case]
    model, x = ready(kind()), image()
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert_same(model(x), deployed(x))
    change(deployed)
    with pytest.raises(SpecializedError):
        deployed(x)


@pytest.mark.parametrize("keep_fallback", [False, True])
def test_a_setting_of_a_module_that_another_one_replaced_is_missing(keep_fallback: bool) -> None:
    model, x = ready(Tapped()), image()
    deployed: Any = reptool.deploy(model, x, keep_fallback=keep_fallback)
    model.tap = deployed.tap = nn.Identity()
    if keep_fallback:
        assert_same(model(x), deployed(x))
    else:
        with pytest.raises(SpecializedError):
            deployed(x)


class Answers(ConvBN):
    """Settings that a class looks up by code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = {"raw": False}

    def __getattr__(self, name: str) -> Any:
        table = self.__dict__.get("table", {})
        return table[name] if name in table else super().__getattr__(name)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y if self.raw else self.bn(y)


class Falls(Answers):
    def __getattr__(self, name: str) -> Any:
        try:
            return super(Answers, self).__getattr__(name)
        except AttributeError:
            if name in self.__dict__.get("table", {}):
                return self.__dict__["table"][name]
            raise


@pytest.mark.parametrize("kind", [Answers, Falls])
def test_settings_that_a_class_looks_up_itself_are_checked(kind: type[Answers]) -> None:
    model, x = ready(kind()), image()
    deployed: Any = reptool.deploy(model, x)
    assert norms(deployed) == 0
    assert_same(model(x), deployed(x))
    deployed.table["raw"] = True
    with pytest.raises(SpecializedError):
        deployed(x)
