"""Each kind of file is written, run and counted."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from reptool.errors import InputError
from reptool.ship.runtimes import RUNTIMES, onnx_operators, runtime_of, without_chatter


def there(suffix: str) -> bool:
    """Whether the packages of a runtime are installed."""
    return all(importlib.util.find_spec(package) for package, _ in RUNTIMES[suffix].needs)


KINDS = [pytest.param(s, marks=pytest.mark.skipif(not there(s), reason="not installed")) for s in RUNTIMES]


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_runs_as_the_program_does(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)).eval()
    images = torch.rand(2, 1, 8, 8)
    runtime, path = runtime_of(tmp_path / f"m{suffix}"), tmp_path / f"m{suffix}"
    runtime.write(torch.export.export(model, (images,)), path)
    (found,) = runtime.open(path)([images])
    torch.testing.assert_close(found, model(images).detach())
    names = [path.name, *([path.with_suffix(runtime.companion).name] if runtime.companion else [])]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names)
    assert sum(runtime.operators(path).values()) >= (1 if suffix == ".pte" else 4)  # XNNPACK takes most of them as one


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
    with pytest.raises(InputError, match=r"'m.tflite': export writes \*.pt2, \*.onnx, \*.xml and \*.pte$"):
        runtime_of(Path("m.tflite"))


def test_a_runtime_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"OpenVINO needs openvino, .* pip install 'reptool.openvino.'"):
        runtime_of(Path("m.xml"))
