"""A forward that asks what its layers are."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from reptool.pysource.asked_kinds import asked_kinds
from tests.traps import ConvBN, check, codes, norms, ready


class Without(ConvBN):
    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 4, 3, padding=1, bias=False))


class Kind(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if isinstance(self.bn, nn.BatchNorm2d) else y.sigmoid()


class Name(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if type(self.bn).__name__ == "BatchNorm2d" else y.sigmoid()


class Bias(Without):
    def forward(self, x: Any) -> Any:
        y = self.bn(self.conv(x))
        return y.relu() if self.conv.bias is None else y.sigmoid()


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Without()

    def forward(self, x: Any) -> Any:
        return self.block(x) * sum(isinstance(m, nn.BatchNorm2d) for m in self.modules())


class Inside(Counts):
    def forward(self, x: Any) -> Any:
        y = self.block(x)
        return y.relu() if self.block.conv.bias is None else y


@pytest.mark.parametrize("model", [Kind, Name, Bias, Inside])
def test_a_layer_that_is_asked_what_it_is_stays(model: type[nn.Module]) -> None:
    deployed, report = check(ready(model()))
    assert norms(deployed) == 1
    assert "specialized" in codes(report)


def test_asking_about_something_else_is_no_reason() -> None:
    class Other(Without):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            y = self.bn(self.conv(x))
            return self.act(y) if isinstance(self.act, nn.ReLU) else y

    assert norms(check(ready(Other()))[0]) == 0
    assert asked_kinds(Inside.forward) == {"block.conv"}
    assert asked_kinds(Counts.forward) == {""}


def test_a_method_that_is_written_anew_asks_nothing_any_more() -> None:
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Any) -> Any:
            y = self.bn(self.first(x)).relu()
            y = y if self.first.bias is not None else -y
            return self.a(y) + self.b(y)

    assert norms(check(ready(Counts()))[0]) == 0  # the count it multiplies by is in the layer
    deployed, _ = check(ready(Summed()))
    assert norms(deployed) == 0
    assert sum(isinstance(m, nn.Conv2d) for m in deployed.modules()) == 2


@pytest.mark.parametrize("read", ["weight.dtype", "weight.device", "weight.shape[0]", "weight.ndim", "weight.numel()"])
def test_an_absorbed_layer_whose_weight_is_asked_for_something_stays(read: str) -> None:
    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.c, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            first, *rest = read.removesuffix("()").removesuffix("[0]").split(".")
            found = getattr(getattr(self.c, first), rest[0])
            y = self.norm(self.c(self.bn(self.a(x))))
            return y.to(found) if read == "weight.dtype" else y

    deployed, _ = check(ready(Peeks()))
    assert norms(deployed) == 0
    assert isinstance(deployed.get_submodule("c"), nn.Conv2d)
