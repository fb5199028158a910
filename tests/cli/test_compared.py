"""Two models, or a model and a file, for the same inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import reptool
from reptool.cli.compared import compare, write_state
from reptool.errors import FileError, InputError

SPEC = "torch.nn:Conv2d(3, 4, 3)"


def test_the_same_weights_give_the_same() -> None:
    found = compare(SPEC, SPEC, None, None, ["2,3,8,8"], 1e-6, 0, 60)
    assert found.same
    assert found.difference == 0
    assert "are the same for inputs of (2, 3, 8, 8)" in found.sentence()


def test_other_models_and_shapes_are_not_the_same() -> None:
    found = compare(SPEC, "torch.nn:Conv2d(3, 4, 3, bias=False)", None, None, ["2,3,8,8"], 1e-6, 0, 60)
    assert not found.same
    assert "are not the same" in found.sentence()
    assert compare(SPEC, "torch.nn:Conv2d(3, 5, 3)", None, None, ["2,3,8,8"], 1e-6, 0, 60).difference == float("inf")


def test_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reptool.export(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8), tmp_path / "m.pt2")
    assert compare(SPEC, str(tmp_path / "m.pt2"), None, None, ["1,3,9,9"], 1e-6, 0, 60).same
    with pytest.raises(FileError, match="there is no file"):
        compare(SPEC, str(tmp_path / "m.safetensors"), None, None, ["1,3,9,9"], 1e-6, 0, 60)
    with pytest.raises(InputError, match="say what goes into them"):
        compare(SPEC, SPEC, None, None, [], 1e-6, 0, 60)


def test_a_state_dict_is_written(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    write_state(model, tmp_path / "m.safetensors", overwrite=False)
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in load_file(tmp_path / "m.safetensors").items())
