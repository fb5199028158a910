"""Whether a method does nothing with an argument but to give it to modules of its own."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

from reptool.pysource.handed import only_hands_on


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.flag = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), True

    def plain(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)).relu()

    def again(self, x: Tensor) -> Any:
        x = self.conv(x)
        return self.norm(x)

    def second(self, y: Tensor, x: Tensor) -> Any:
        return self.conv(x)

    def adds(self, x: Tensor) -> Any:
        return x + self.conv(x)

    def asks(self, x: Tensor) -> Any:
        return self.conv(x) if isinstance(x, Tensor) else x

    def writes(self, x: Tensor) -> Any:
        x += 1
        return self.conv(1)

    def helps(self, x: Tensor) -> Any:
        return self.plain(x)

    def named(self, x: Tensor) -> Any:
        return self.conv(input=x)

    def more(self, *x: Tensor) -> Any:
        return self.conv(x)


@pytest.mark.parametrize(("method", "position", "expected"), [
    ("plain", 0, True), ("again", 0, True), ("second", 1, True), ("adds", 0, False), ("asks", 0, False),
    ("writes", 0, False), ("helps", 0, False), ("named", 0, False), ("more", 0, False), ("plain", 1, False),
    ("nothing", 0, False),
])  # fmt: skip
def test_methods(method: str, position: int, expected: bool) -> None:
    assert only_hands_on(Block(), method, position) is expected


def test_modules_of_torch() -> None:
    assert only_hands_on(nn.Sequential(nn.ReLU()), "forward", 0)
    assert only_hands_on(nn.Identity(), "forward", 0)
    assert not only_hands_on(nn.ReLU(), "forward", 0)
    bound = nn.Sequential(nn.ReLU())
    vars(bound)["forward"] = lambda x: x
    assert not only_hands_on(bound, "forward", 0)
