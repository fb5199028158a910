"""Checkpoints as people have them are read; what would have to be executed is not."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import reptool
from reptool.errors import FileError, InputError
from reptool.ship.checkpoints import AROUND, read_checkpoint, without_prefix

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def matches(found: dict[str, Tensor]) -> bool:
    """Whether it is the state."""
    return found.keys() == STATE.keys() and all(torch.equal(found[n], STATE[n]) for n in STATE)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_dressings(around: str, prefix: str, tmp_path: Path) -> None:
    dressed = OrderedDict((prefix + n, t) for n, t in STATE.items())
    torch.save({"epoch": 7, around: dressed, "optimizer": {"lr": 0.1, "state": {}}}, tmp_path / "last.pth.tar")
    assert matches(read_checkpoint(tmp_path / "last.pth.tar", STATE))


def test_a_dressing_in_a_dressing_and_none(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": STATE}}, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.bin")
    save_file({f"module.{n}": t for n, t in STATE.items()}, tmp_path / "c.safetensors")
    for path in tmp_path.iterdir():
        assert matches(read_checkpoint(path, STATE))


def test_files_of_safetensors_are_known_by_what_they_hold(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.ckpt")
    assert matches(read_checkpoint(tmp_path / "m.ckpt"))


def test_of_several_states_one_has_to_be_named(tmp_path: Path) -> None:
    other = {n: t + 1 for n, t in STATE.items()}
    torch.save({"model": other, "model_ema": STATE}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"several state dicts: model, model_ema; say which"):
        read_checkpoint(tmp_path / "c.pt")
    assert matches(read_checkpoint(tmp_path / "c.pt", key="model_ema"))
    with pytest.raises(InputError, match="no state dict under 'ema'; it holds model, model_ema"):
        read_checkpoint(tmp_path / "c.pt", key="ema")


def test_a_prefix_that_the_model_has_stays() -> None:
    state = {"model.fc": torch.ones(1)}
    assert list(without_prefix(state, ["model.fc"])) == ["model.fc"]
    assert list(without_prefix(state)) == ["model.fc"]
    assert list(without_prefix(state, ["fc"])) == ["fc"]


class Runs:
    """A pickle of it runs a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": STATE, "config": Runs()}, "c.pt")
    with pytest.raises(InputError, match=r"holds pickled code .*system.*which is not run; save the tensors alone"):
        read_checkpoint("c.pt")
    torch.save(reptool.deploy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()), "m.pt")
    with pytest.raises(InputError, match=r"pickled code .*reptool.save\(model"):
        read_checkpoint("m.pt")
    assert not Path("hacked").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"no checkpoint", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"\0" * 40])
def test_other_files_are_told(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises((FileError, InputError), match=r"c\.pt"):
        read_checkpoint(tmp_path / "c.pt")


def test_truncated_checkpoints_are_told(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "c.pt")
    save_file(STATE, tmp_path / "c.safetensors")
    for name in ("c.pt", "c.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for kept in (10, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:kept])
            with pytest.raises(FileError):
                read_checkpoint(tmp_path / name)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="there is no file"):
        read_checkpoint(tmp_path / "no.pt")
    with pytest.raises(FileError, match="there is no file"):
        read_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"no state dict .*a list"):
        read_checkpoint(tmp_path / "list.pt")


def test_an_index_names_files_of_its_folder_alone(tmp_path: Path) -> None:
    index = tmp_path / "folder" / "model.safetensors.index.json"
    index.parent.mkdir()
    save_file({"fc.weight": STATE["fc.weight"]}, index.with_name("1.safetensors"))
    save_file({"fc.bias": STATE["fc.bias"]}, index.with_name("2.safetensors"))
    save_file({"fc.bias": STATE["fc.bias"]}, tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": {"fc.weight": "1.safetensors", "fc.bias": "2.safetensors"}}))
    assert matches(read_checkpoint(index))
    index.with_name("link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    for name in (
        "../outside.safetensors",
        str(tmp_path / "outside.safetensors"),
        "link.safetensors",
        "gone.safetensors",
    ):
        index.write_text(json.dumps({"weight_map": {"fc.weight": "1.safetensors", "fc.bias": name}}))
        with pytest.raises(FileError, match="folder"):
            read_checkpoint(index)
    for text in ("", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with pytest.raises(FileError, match="index"):
            read_checkpoint(index)
