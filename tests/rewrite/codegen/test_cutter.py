"""Methods that were written anew give what the originals give: values, containers and names of whatever kind."""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reptool
from tests.traps import assert_same, image


class Attributes(dict):  # type: ignore[type-arg]
    """A dictionary whose items are attributes."""

    __getattr__ = dict.__getitem__


class Ordered(OrderedDict):  # type: ignore[type-arg]
    """As transformers' outputs are: ordered, and with attributes that mirror the items."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_by = "a block"


class Named(NamedTuple):
    """A named tuple."""

    features: Tensor
    rest: Any = None


class Values(list):  # type: ignore[type-arg]
    """A list of a class of its own."""


class Pair(tuple):  # type: ignore[type-arg]
    """A tuple of a class of its own, with an attribute."""

    note = "pair"


@dataclass
class Record:
    """A dataclass."""

    features: Tensor
    note: str = "none"


class Plain:
    """An object that only holds things."""

    def __init__(self, features: Tensor) -> None:
        self.features, self.held = features, [features, 1]


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "attributes": lambda y: Attributes(features=y, n=1),
    "ordered": lambda y: Ordered(b=y, a=y * 2),
    "plain ordered": lambda y: OrderedDict(b=y, a=[y, None]),
    "default": lambda y: defaultdict(list, features=y),
    "named": lambda y: Named(y, rest={"y": y}),
    "list": lambda y: Values([y, 3]),
    "tuple": lambda y: Pair((y, y)),
    "dataclass": lambda y: Record(y, "seen"),
    "object": lambda y: Plain(y),
    "nested": lambda y: Attributes(parts=Values([Named(y), Record(y)])),
}


class Block(nn.Module):
    """Parallel branches, whose method is written anew, and what is done with their sum."""

    def __init__(self, finish: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.finish = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), finish

    def forward(self, x: Tensor) -> Any:
        return self.finish(self.a(x) + self.b(x))


class Caller(nn.Module):
    """Uses what its block gives as what it is, and has branches of its own."""

    def __init__(self, finish: Callable[[Tensor], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.block, self.read = Block(finish), read
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.read(self.block(x)))
        return self.a(y) + self.b(y)


READERS: dict[str, Callable[[Any], Tensor]] = {
    "attributes": lambda out: out.features,
    "ordered": lambda out: next(iter(out.values())) + out["a"],
    "default": lambda out: out["features"] if not out["nothing"] else out["a"],
    "named": lambda out: out._replace(rest=1).features,
    "list": lambda out: out[0] * out[-1],
    "tuple": lambda out: out[0] if out.note == "pair" else out[1],
    "dataclass": lambda out: out.features * len(out.note),
    "object": lambda out: out.held[0] + out.features,
    "nested": lambda out: out.parts[0].features + out.parts[1].features,
}


def deployed(model: nn.Module, example: Tensor | None) -> nn.Module:
    """A deployed model in which something was fused."""
    made = reptool.deploy(model, example)
    before, after = reptool.report(made).layers
    assert after < before
    return made


def same_classes(wanted: Any, given: Any) -> None:
    """Containers of the same classes all the way down, in the same order, with the same attributes."""
    assert type(wanted) is type(given)
    if isinstance(wanted, dict):
        assert list(wanted) == list(given)
        for key in wanted:
            same_classes(wanted[key], given[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(wanted) == len(given)
        for one, other in zip(wanted, given, strict=True):
            same_classes(one, other)
    if hasattr(wanted, "__dict__") and not isinstance(wanted, Tensor):
        assert vars(wanted).keys() == vars(given).keys()
        for name, value in vars(wanted).items():
            same_classes(value, vars(given)[name])


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_outputs_come_back_as_what_they_were(kind: str, shown: bool) -> None:
    model, x = Block(OUTPUTS[kind]).double().eval(), image()
    made = deployed(model, x if shown else None)
    wanted, given = model(x), made(x)
    same_classes(wanted, given)
    assert_same(wanted, given)
    assert made(x) is not given, "built once and kept"


@pytest.mark.parametrize("kind", list(READERS))
def test_a_caller_uses_them_as_what_they_are(kind: str) -> None:
    model, x = Caller(OUTPUTS[kind], READERS[kind]).double().eval(), image()
    assert_same(model(x), deployed(model, x)(x))


class Mode(enum.Enum):
    """An enumeration that the code of a model names."""

    SUM = "sum"
    MEAN = "mean"


class Width(enum.IntEnum):
    """Numbers with names."""

    HALF = 2


LOOKUP = np.array([0, 2])
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "product of sizes": lambda y: y.reshape(y.shape[0], np.prod(y.shape[1:])),
    "numpy's root": lambda y: y / np.sqrt(2),
    "number of numpy": lambda y: y.sum(np.int64(1)),
    "array as index": lambda y: y[:, np.array([0, 2])],
    "array of a module": lambda y: y[:, LOOKUP],
    "array as operand": lambda y: y * torch.as_tensor(np.array([2.0, 3.0]))[:, None, None, None],
    "dtype of numpy": lambda y: y.to(torch.from_numpy(np.zeros(1, np.float32)).dtype),
    "rounded sizes": lambda y: y[..., : int(np.ceil(y.shape[-1] / 2))],
    "named number": lambda y: y[..., :: Width.HALF],
    "enumeration": lambda y: y.sum(1) if Mode.SUM is Mode("sum") else y.mean(1),
    "infinity": lambda y: y.clamp(max=float("inf"), min=-np.inf),
    "array of weights": lambda y: torch.einsum("nchw,c->nhw", y, torch.tensor(np.arange(4.0))),
}


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("kind", list(VALUES))
def test_values_of_numpy_and_enumerations(kind: str, shown: bool) -> None:
    model, x = Block(VALUES[kind]).double().eval(), image(2, 3, 8, 8)
    assert_same(model(x), reptool.deploy(model, x if shown else None)(x))


ODD = (
    'say "hi"',
    "new\nline",
    "null\0byte",
    "class",
    '"""',
    "\\'",
    "cr\rx",
    "self",
    "x",
    "é",
    "\ud800",
    "{0}",
    "%s",
    "#",
)


class Oddly(nn.Module):
    """Parallel branches, one of them under any name, and a constant of that name behind them."""

    def __init__(self, name: str, word: bool) -> None:
        super().__init__()
        self.called, self.word = name, word
        self.add_module(name, nn.Conv2d(3, 4, 3, padding=1))
        self.point = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        branch = self._modules[self.called]
        assert branch is not None
        y = (branch(x) + self.point(x)).relu()
        return {self.called: y} if self.word else y


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("word", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_names_and_words_change_no_code(name: str, word: bool, flatten: bool) -> None:
    model, x = Oddly(name, word).double().eval(), image()
    made: Any = reptool.deploy(model, x, flatten=flatten)
    wanted, given = model(x), made(x)
    if word:
        assert list(wanted) == list(given)
        wanted, given = wanted[name], given[name]
    assert_same(wanted, given)
