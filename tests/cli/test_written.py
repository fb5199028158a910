"""Files by the ending of their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import reptool
from reptool.cli.written import as_json, check_out, check_report, write_out, write_report
from reptool.errors import InputError


def net() -> nn.Module:
    """A layer and its norm, called by something that has to be escaped."""
    return type("<b>Net", (nn.Sequential,), {})(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()


@pytest.mark.parametrize("name", ["r.html", "r.json", "r.md"])
def test_reports(name: str, tmp_path: Path) -> None:
    report = reptool.explain(net())
    write_report(tmp_path / name, report, overwrite=False)
    text = (tmp_path / name).read_text("utf-8")
    if name == "r.json":
        assert json.loads(text) == json.loads(report.to_json())
    else:
        assert "<b>Net" not in text
    with pytest.raises(InputError, match="is there already"):
        write_report(tmp_path / name, report, overwrite=False)
    write_report(tmp_path / name, report, overwrite=True)


def test_models(tmp_path: Path) -> None:
    original = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    deployed, images = reptool.deploy(original), torch.randn(2, 3, 8, 8)
    assert write_out(tmp_path / "m.safetensors", deployed, images, original, False) is None
    made = write_out(tmp_path / "m.pt2", deployed, images, original, False)
    assert made.operators_before is not None


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    check_out(None, None, False)
    check_report(None, False)
    check_out(tmp_path / "m.safetensors", None, False)
    with pytest.raises(InputError, match="say what goes into the model"):
        check_out(tmp_path / "m.pt2", None, False)
    with pytest.raises(InputError, match="export writes"):
        check_out(tmp_path / "m.trt", (), False)
    with pytest.raises(InputError, match=r"a report is \*.html"):
        check_report(tmp_path / "r.txt", False)


def test_data() -> None:
    assert json.loads(as_json({"path": Path("a"), "shape": (1, 2)})) == {"path": "a", "shape": [1, 2]}


def test_a_folder_is_for_the_models_own_way_of_saving(tmp_path: Path) -> None:
    class Saving(nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            Path(folder).mkdir()
            torch.save(self.state_dict(), Path(folder, "model.pt"))

    model = Saving(2, 2)
    check_out(tmp_path / "merged", None, False)
    assert write_out(tmp_path / "merged", model, None, model, False) is None
    assert (tmp_path / "merged" / "model.pt").is_file()
    with pytest.raises(InputError, match="is there already"):
        check_out(tmp_path / "merged", None, True)
    with pytest.raises(InputError, match="has no save_pretrained"):
        write_out(tmp_path / "other", nn.Linear(2, 2), None, model, False)
