"""Other ways to call a method than the one that was seen, and attributes set after deploying."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.traps import ConvBN, check, image, norms, ready


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
