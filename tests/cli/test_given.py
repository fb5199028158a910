"""Shapes and weights as the command line is given them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reptool.cli.given import inputs_of, model_of
from reptool.errors import InputError


def test_shapes_become_tensors() -> None:
    found = inputs_of(["2,3,8,8", "2,5:int64", "7:float16"], nn.Identity())
    assert [(tuple(t.shape), t.dtype) for t in found] == [
        ((2, 3, 8, 8), torch.float32), ((2, 5), torch.int64), ((7,), torch.float16),
    ]  # fmt: skip
    assert torch.equal(found[0], inputs_of(["2,3,8,8"], nn.Identity())[0])
    assert not torch.equal(found[0], inputs_of(["2,3,8,8"], nn.Identity(), seed=1)[0])
    assert list(inputs_of(["x=1,2", "ids=3:int64"], nn.Identity())) == ["x", "ids"]


def test_the_models_own_size_is_taken_where_nothing_is_named() -> None:
    model = nn.Identity()
    assert inputs_of([], model) is None
    model.pretrained_cfg = {"input_size": (1, 32, 48)}
    assert inputs_of([], model)[0].shape == (1, 1, 32, 48)


@pytest.mark.parametrize("text", ["", "a", "1,-3", "1, 3", "=1", "1:tensor", "1,0,3", "1:__class__", "1,,2", "1e9"])
def test_what_is_no_shape_is_told(text: str) -> None:
    with pytest.raises(InputError, match="inputs"):
        inputs_of([text], nn.Identity())


def test_names_for_all_or_none() -> None:
    with pytest.raises(InputError, match="give names to all of them or to none"):
        inputs_of(["x=1,2", "3"], nn.Identity())


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    one, same, other = (model_of("torch.nn:Linear(2, 3)", seed=s) for s in (0, 0, 1))
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    torch.save({"ema": other.state_dict()}, tmp_path / "c.pt")
    assert torch.equal(model_of("torch.nn:Linear(2, 3)", tmp_path / "c.pt").weight, other.weight)
