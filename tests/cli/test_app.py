"""The commands by what they print, write and answer; every error is one paragraph and exit code 1 or 2."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.cli.main import main
from reptool.testing import randomize

IMAGES = ("--inputs", "2,3,16,16")


class Net(nn.Module):
    """A block and a head; with `norm` one that normalizes by its batch."""

    def __init__(self, width: int = 4, norm: bool = False) -> None:
        super().__init__()
        self.block = RepVGGBlock(3, width)
        self.plain = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.BatchNorm2d(width, track_running_stats=False) if norm else nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(torch.relu(self.plain(torch.relu(self.block(x))))))


def broken() -> nn.Module:
    raise RuntimeError("no such backbone\nin two lines")


def endless() -> nn.Module:
    time.sleep(60)
    return Net()


@pytest.fixture(autouse=True)
def _nets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = ModuleType("cli_nets")
    vars(made).update(Net=Net, broken=broken, endless=endless, number=lambda: 3)
    monkeypatch.setitem(sys.modules, "cli_nets", made)
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of one command."""
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


def data_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command prints for programs."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


# --- deploy
def test_deploy_prints_a_report_and_writes_what_it_made(capsys: Any) -> None:
    code, out, err = run(capsys, "deploy", "cli_nets:Net(width=5)", "--out", "m.safetensors", "--report", "r.md")
    assert code == 0
    assert "region" in out
    assert "written: m.safetensors" in err
    assert "written: r.md" in err
    loaded = reptool.load("m.safetensors", into=lambda: Net(5))
    assert len(reptool.report(loaded).regions) == 1
    assert Path("r.md").read_text().startswith("### reptool: Net")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_deploy_exports_and_shows_the_operators(suffix: str, capsys: Any) -> None:
    code, out, _ = run(capsys, "deploy", "cli_nets:Net", *IMAGES, "--out", f"m{suffix}")
    assert code == 0
    assert f"m{suffix} in" in out
    assert "largest difference to the deployed model" in out
    assert Path(f"m{suffix}").stat().st_size


def test_data_for_programs(capsys: Any) -> None:
    found = data_of(capsys, "deploy", "cli_nets:Net", *IMAGES, "--out", "m.onnx")
    assert found["report"]["regions"][0]["layer"] == "block.branches.dense.conv"
    assert found["export"]["free"] == [["batch", 3, "height", "width"]]
    assert found["out"] == "m.onnx"


def test_layers_take_the_places_of_wrappers_where_asked(capsys: Any) -> None:
    found = data_of(capsys, "deploy", "cli_nets:Net", "--unwrap")
    assert found["report"]["unwrapped"] == {"block.branches": "Parallel"}


def test_weights_of_a_checkpoint_are_taken(capsys: Any) -> None:
    trained = randomize(Net().eval(), seed=3)
    torch.save({"model": {f"module.{n}": t for n, t in trained.state_dict().items()}}, "last.pth")
    assert run(capsys, "deploy", "cli_nets:Net", "--weights", "last.pth", "--out", "m.safetensors")[0] == 0
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(reptool.load("m.safetensors", into=Net)(x), trained(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["html", "json", "md"])
def test_reports_in_every_form(form: str, capsys: Any) -> None:
    assert run(capsys, "explain", "cli_nets:Net", "--report", f"r.{form}")[0] == 0
    text = Path(f"r.{form}").read_text()
    assert "block.branches.dense.conv" in text.replace("<wbr>", "")
    if form == "json":
        assert json.loads(text)["model"] == "Net"
    if form == "html":
        assert text.startswith("<!doctype html>")
        assert "http" not in text


def test_what_is_required_and_not_so_is_exit_code_1(capsys: Any) -> None:
    code, out, err = run(
        capsys, "deploy", "cli_nets:Net(norm=True)", "--require", "no_batchnorm", "--out", "m.safetensors"
    )
    assert code == 1
    assert "1 batch normalization left" in err
    assert not out
    assert not Path("m.safetensors").exists()


# --- the other commands
def test_explain(capsys: Any) -> None:
    assert data_of(capsys, "explain", "cli_nets:Net", *IMAGES)["norms"] == [2, 0]
    assert "block.branches.dense.conv" in run(capsys, "explain", "cli_nets:Net")[1]


def test_expand(capsys: Any) -> None:
    where = ("--where", "plain")
    code, out, err = run(
        capsys, "expand", "cli_nets:Net", "--block", "DiverseBranchBlock", *where, "--out", "grown.safetensors"
    )
    assert code == 0, err
    assert "plain" in out
    assert len(load_file("grown.safetensors")) > len(Net().state_dict())


def test_compare_with_itself_its_file_and_another(capsys: Any) -> None:
    assert run(capsys, "deploy", "cli_nets:Net", *IMAGES, "--out", "m.safetensors")[0] == 0
    assert run(capsys, "deploy", "cli_nets:Net", *IMAGES, "--out", "m.onnx")[0] == 0
    for other in ("cli_nets:Net", "m.safetensors", "m.onnx"):
        code, out, err = run(capsys, "compare", "cli_nets:Net", other, *IMAGES)
        assert code == 0, err
        assert "are the same for inputs of (2, 3, 16, 16)" in " ".join(out.split())
    code, out, _ = run(capsys, "compare", "cli_nets:Net", "cli_nets:Net(width=5)", *IMAGES)
    assert code == 1
    assert "are not the same" in " ".join(out.split())
    assert data_of(capsys, "compare", "cli_nets:Net", "m.onnx", *IMAGES)["difference"] < 1e-5


def test_bench(capsys: Any) -> None:
    found = data_of(capsys, "bench", "cli_nets:Net", *IMAGES, "--seconds", "0.1")
    assert all(ms > 0 for ms in found["milliseconds"])
    assert found["parameters"][0] > found["parameters"][1]
    assert "after / before" in run(capsys, "bench", "cli_nets:Net", *IMAGES, "--seconds", "0.1")[1]


def test_doctor(capsys: Any) -> None:
    found = data_of(capsys, "doctor")
    assert found["versions"]["torch"]
    assert found["checks"]["deploy"] == found["checks"]["save and load"] == ""
    assert "works" in run(capsys, "doctor")[1]


def test_version_and_help(capsys: Any) -> None:
    assert run(capsys, "--version") == (0, f"reptool {reptool.__version__}\n", "")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("deploy", "explain", "expand", "compare", "bench", "doctor", "demo"))


# --- hostile input: one paragraph, exit code 2, nothing written
HOSTILE: dict[str, tuple[list[str], str]] = {
    "no spec": (["deploy", "repvgg_a0"], "names no model; expected timm:NAME"),
    "shell characters": (["deploy", "timm:$(touch hacked);a"], "names no model"),
    "code in parentheses": (["deploy", "cli_nets:Net(width=__import__('os').system('touch hacked'))"], "literals"),
    "a module that there is not": (["deploy", "no_such_module:net"], "needs the module 'no_such_module'"),
    "a name that there is not": (["deploy", "cli_nets:nothing"], "could not be built: AttributeError"),
    "code that raises": (["deploy", "cli_nets:broken"], "could not be built: RuntimeError: no such backbone"),
    "code that gives no model": (["deploy", "cli_nets:number"], "built a int"),
    "code that does not end": (["deploy", "cli_nets:endless", "--timeout", "0.2"], "still building after 0.2 seconds"),
    "wrong arguments": (["deploy", "cli_nets:Net(depth=3)"], "could not be built: TypeError"),
    "inputs that are no shape": (["deploy", "cli_nets:Net", "--inputs", "1x3"], "'1x3' is no shape"),
    "inputs of all memory": (["deploy", "cli_nets:Net", "--inputs", "99999,99999,99999"], "give a shape that fits"),
    "inputs that do not fit": (["deploy", "cli_nets:Net", "--inputs", "1,4,8,8"], "does not run on example_inputs"),
    "a dtype that there is not": (["deploy", "cli_nets:Net", "--inputs", "1,3,8,8:load"], "there is no dtype 'load'"),
    "weights that there are not": (["deploy", "cli_nets:Net", "--weights", "no.pth"], "there is no file 'no.pth'"),
    "weights that are none": (["deploy", "cli_nets:Net", "--weights", "text.pth"], "'text.pth'"),
    "weights with code": (["deploy", "cli_nets:Net", "--weights", "code.pth"], "holds pickled code"),
    "weights of another model": (["deploy", "cli_nets:Net(width=9)", "--weights", "net.pth"], "does not fit Net"),
    "a folder as weights": (["deploy", "cli_nets:Net", "--weights", "."], "there is no file"),
    "an unknown requirement": (["deploy", "cli_nets:Net", "--require", "speed"], "unknown requirement"),
    "a pattern for nothing": (["deploy", "cli_nets:Net", "--exclude", "neck.*"], "matches no module"),
    "an existing file": (["deploy", "cli_nets:Net", "--out", "mine.safetensors"], "is there already"),
    "an existing report": (["explain", "cli_nets:Net", "--report", "mine.md"], "is there already"),
    "a folder that there is not": (["deploy", "cli_nets:Net", "--out", "no/m.safetensors"], "there is no folder"),
    "a folder as a file": (["deploy", "cli_nets:Net", "--out", "folder.safetensors"], "is a folder"),
    "another kind of file": (
        ["deploy", "cli_nets:Net", "--out", "m.engine"],
        "writes *.pt2, *.onnx, *.xml and *.pte",
    ),
    "another kind of report": (["deploy", "cli_nets:Net", "--report", "r.pdf"], "a report is *.html, *.json or *.md"),
    "an export of nothing": (["deploy", "cli_nets:Net", "--out", "m.onnx"], "--inputs 1,3,224,224"),
    "no inputs to compare": (["compare", "cli_nets:Net", "cli_nets:Net"], "--inputs 1,3,224,224"),
    "a file that is none": (["compare", "cli_nets:Net", "mine.safetensors", *IMAGES], "no whole file of safetensors"),
    "no inputs to time": (["bench", "cli_nets:Net"], "--inputs 1,3,224,224"),
    "a block that there is not": (["expand", "cli_nets:Net", "--block", "os"], "there is no block 'os'; there are"),
    "an unknown option": (["deploy", "cli_nets:Net", "--inplace"], "--inplace"),
    "an unknown command": (["fuse", "cli_nets:Net"], "fuse"),
    "no model": (["deploy"], "SPEC"),
}


class Code:
    """A pickle of it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_one_paragraph_and_exit_code_2(name: str, capsys: Any) -> None:
    Path("mine.safetensors").write_text("mine")
    Path("mine.md").write_text("mine")
    Path("folder.safetensors").mkdir()
    Path("text.pth").write_text("text")
    torch.save(Code(), "code.pth")
    torch.save(Net().state_dict(), "net.pth")
    before = {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    arguments, said = HOSTILE[name]
    code, out, err = run(capsys, *arguments)
    assert code == 2, (out, err)
    assert said in err.replace("\n", " ") or said in err
    assert "Traceback" not in err
    assert not out
    assert {p.name: p.read_bytes() for p in Path().iterdir() if p.is_file()} == before


def test_names_of_any_alphabet(capsys: Any) -> None:
    name = "сеть 模型 $(touch hacked).safetensors"
    assert run(capsys, "deploy", "cli_nets:Net", "--out", name)[0] == 0
    assert [p.name for p in Path().iterdir()] == [name]


def test_a_disk_that_is_full_leaves_the_old_file(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m.safetensors").write_text("old")

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    code, _, err = run(capsys, "deploy", "cli_nets:Net", "--out", "m.safetensors", "--overwrite")
    assert code == 2
    assert "No space left on device; what was there before is as it was" in err
    assert [p.read_text() for p in Path().iterdir()] == ["old"]


def test_an_interrupt_leaves_the_old_file(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("m.safetensors").write_text("old")

    def interrupted(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    code, _, err = run(capsys, "deploy", "cli_nets:Net", "--out", "m.safetensors", "--overwrite")
    assert code == 130
    assert err == "error: interrupted; no file was left half written\n"
    assert [p.read_text() for p in Path().iterdir()] == ["old"]
