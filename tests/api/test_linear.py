"""The work of a deploy grows with the network: calls are counted, so that no clock decides."""

from __future__ import annotations

import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool

FEW, MANY = 32, 256
GROWTH = 1.5
"""A function may be called so many times as often for each block of a network of many blocks."""
RARE = 1000
"""Functions that are called less often in all are of no weight: sorting and the like."""


class Block(nn.Module):
    """Two branches and a shortcut, a flag that nothing sets, and a norm that has to stay."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.point, self.other = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.last, self.twice = nn.BatchNorm2d(channels), False

    def forward(self, x: Tensor) -> Tensor:
        """The sum, an activation, and a norm that nothing takes."""
        y = self.bn(self.conv(x)) + self.other(self.point(x))
        if self.twice:
            y = y * 2
        return self.last(torch.relu(y)) + x


class Attending(nn.Module):
    """Attention behind a norm that goes into the layers that read it, with an argument that nobody gives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(channels), nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One head beside a shortcut."""
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, c).unbind(2)
        scores = q @ k.transpose(1, 2)
        if mask is not None:
            scores = scores + mask
        return x + self.proj((scores.softmax(-1) @ v).reshape(b, n, c))


def calls(kind: type[nn.Module], blocks: int) -> Counter[CodeType]:
    """How often each function of reptool is called to deploy a network of so many blocks."""
    model = nn.Sequential(*(kind(4) for _ in range(blocks))).eval()
    seen: Counter[CodeType] = Counter()

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "reptool" in frame.f_code.co_filename:
            seen[frame.f_code] += 1

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        deployed = reptool.deploy(model)
    finally:
        sys.setprofile(before)
    assert len(reptool.report(deployed).regions) >= blocks
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "small", "large"), [(Block, FEW, MANY), (Attending, 4, 24)])
def test_no_function_is_called_more_often_for_each_block_of_a_larger_network(
    kind: type[nn.Module], small: int, large: int
) -> None:
    calls(kind, 2)
    few, many = calls(kind, small), calls(kind, large)
    grown = {
        f"{code.co_filename}:{code.co_firstlineno} {code.co_name}": (few[code], count)
        for code, count in many.items()
        if count > RARE and count > GROWTH * large / small * max(few[code], 1)
    }
    assert not grown
