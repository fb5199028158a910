"""Two models have the same outcome where they consist of the same, and whatever differs is named."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.recipes.outcome import difference, outcome, words
from reptool.testing import randomize


class Block(nn.Module):
    """One layer, a norm, and settings."""

    def __init__(self, slope: float = 0.1, width: int = 4) -> None:
        super().__init__()
        self.slope, self.name = slope, "block"
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(self.norm(self.conv(x)), self.slope)


def test_values_and_modes_make_no_difference() -> None:
    assert difference(outcome(randomize(Block()).train()), outcome(Block().eval())) == ""
    assert difference(outcome(Block().to("meta")), outcome(Block())) == ""


CHANGES: dict[str, tuple[Callable[[Block], object], str]] = {
    "a setting": (lambda m: setattr(m, "slope", 0.2), "'slope' of '<root>' is 0.2 here, and was 0.1"),
    "a new setting": (lambda m: setattr(m, "extra", 1), "'extra' of '<root>' is 1 here, and was 'nothing'"),
    "another class": (lambda m: setattr(m, "norm", nn.Identity()), "'norm' is a torch.nn.* here, and was a torch.nn.*"),
    "another shape": (lambda m: setattr(m, "norm", nn.BatchNorm2d(5)), "'norm' .* has other shapes"),
    "a stride": (lambda m: setattr(m.conv, "stride", (2, 2)), "'conv' .* has other shapes, geometry"),
    "a module more": (lambda m: m.add_module("head", nn.ReLU()), "there is a 'head' here"),
    "a module less": (lambda m: m._modules.pop("norm"), "there is no 'norm' here"),
    "a buffer": (lambda m: m.register_buffer("seen", torch.ones(1)), "'<root>' .* has other shapes"),
    "a shared module": (lambda m: setattr(m, "norm", m.conv), "'norm' is shared with another module"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_named(name: str) -> None:
    change, said = CHANGES[name]
    model = Block()
    change(model)
    found = difference(outcome(model), outcome(Block()))
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found)


def test_deploying_makes_a_difference_and_deploying_alike_makes_none() -> None:
    first, second = (reptool.deploy(randomize(Block().eval(), seed)) for seed in (1, 2))
    assert difference(outcome(first), outcome(second)) == ""
    assert "'conv'" in difference(outcome(first), outcome(Block()))


def test_another_process_finds_the_same() -> None:
    code = (
        "import torch, reptool; from tests.recipes.test_outcome import Block, outcome\n"
        "print(outcome(reptool.deploy(Block().eval(), torch.ones(1, 3, 8, 8))))"
    )
    root = str(Path(__file__).parents[2])
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


class Kind(enum.Enum):
    """Two kinds."""

    A = 1


@dataclass
class Data:
    """Something that holds something."""

    inner: object


def test_words_are_the_same_for_the_same() -> None:
    assert words({3, 1, 2}) == words({2, 3, 1})
    assert words(object()) == words(object()) == "object"
    assert words(Data(Kind.A)) == "Data(Kind.A)"
    assert words(len) == "builtins.len"
    assert words(torch.ones(2)) == words(torch.zeros(2)) != words(torch.ones(3))
    assert words(1) != words(True) != words(1.0)
    assert words({"a": [slice(1, 2)]}) != words({"a": [slice(1, 3)]})
