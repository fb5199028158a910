"""Each kind of file is written, run and counted."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from reptool.errors import InputError
from reptool.ship.runtimes import RUNTIMES, onnx_operators, runtime_of, without_chatter


@pytest.mark.parametrize("suffix", list(RUNTIMES))
def test_a_file_runs_as_the_program_does(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)).eval()
    images = torch.rand(2, 1, 8, 8)
    runtime, path = runtime_of(tmp_path / f"m{suffix}"), tmp_path / f"m{suffix}"
    runtime.write(torch.export.export(model, (images,)), path)
    (found,) = runtime.open(path)([images])
    torch.testing.assert_close(found, model(images).detach())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert sum(runtime.operators(path).values()) >= 4


def test_operators_of_onnx(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()).eval(), (torch.rand(2, 1, 8, 8),))
    RUNTIMES[".onnx"].write(program, tmp_path / "m.onnx")
    assert onnx_operators(tmp_path / "m.onnx") == {"Conv": 1, "Relu": 1}


def test_the_exporter_can_be_heard_again_afterwards() -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    with without_chatter():
        assert logger.level == logging.ERROR
    assert logger.level == before


def test_kinds_of_files_that_there_are_not() -> None:
    with pytest.raises(InputError, match=r"'m.tflite': export writes \*.pt2 and \*.onnx$"):
        runtime_of(Path("m.tflite"))
