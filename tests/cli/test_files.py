"""`deploy` and `explain` of ONNX files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptool.cli.main import main

onnx = pytest.importorskip("onnx")
from tests.programs.test_onnx import X, conv_norm, kinds, same  # noqa: E402


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(conv_norm(), "in.onnx")
    return Path("in.onnx")


def test_a_file_is_collapsed_into_another(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("deploy", str(file), "--out", "out.onnx", "--report", "report.md", "--json")) == 0
    found = json.loads(capsys.readouterr().out)["report"]
    assert found["norms"] == [1, 0]
    assert kinds(onnx.load("out.onnx")) == ["Conv", "Relu"]
    same(onnx.load(file), onnx.load("out.onnx"))
    assert Path("report.md").exists()
    assert X.shape == (2, 3, 9, 10)


def test_what_cannot_be_done_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("deploy", str(file), "--out", "out.safetensors")) == 2
    assert "written as *.onnx" in capsys.readouterr().err
    assert main(("deploy", "missing.onnx")) == 2
    assert "there is no file" in capsys.readouterr().err
    assert main(("deploy", str(file), "--exclude", "w", "--require", "no_batchnorm")) == 1
    assert main(("explain", str(file))) == 0
    assert "batch normalizations" in capsys.readouterr().out
