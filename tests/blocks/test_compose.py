"""Parallel."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.blocks import Parallel
from reptool.errors import InputError


def test_sum_and_concat() -> None:
    a, b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(Parallel([a, b])(x), a(x) + b(x))
    assert torch.equal(Parallel({"a": a, "b": b}, "concat")(x), torch.cat([a(x), b(x)], 1))


def test_one_branch_and_names() -> None:
    block = Parallel({"only": nn.Conv2d(3, 4, 1)})
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(block(x), block["only"](x))
    assert list(block.state_dict()) == ["only.weight", "only.bias"]
    again = Parallel(nn.ModuleDict({"only": block["only"]}))
    assert list(again.state_dict()) == ["only.weight", "only.bias"]
    assert list(Parallel(nn.ModuleList([block["only"]])).state_dict()) == ["0.weight", "0.bias"]


def test_nests() -> None:
    block = Parallel([nn.Identity(), Parallel([nn.Identity(), nn.Identity()])])
    assert torch.equal(block(torch.ones(1, 1)), torch.full((1, 1), 3.0))


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="no branches"):
        Parallel([])
    with pytest.raises(InputError, match="mean"):
        Parallel([nn.Identity()], "mean")  # type: ignore[arg-type]
