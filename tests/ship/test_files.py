"""Files are there whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from reptool.errors import FileError, InputError
from reptool.ship.files import check_free, companion, replacing


def _write(path: Path, then: Callable[[Path], object], overwrite: bool = False) -> None:
    with replacing(path, overwrite) as beside:
        beside.write_text("new")
        then(beside)


def _fail(error: Exception) -> None:
    raise error


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as beside:
        beside.write_text("whole")
        assert not path.exists()
        assert beside.parent == tmp_path
        assert beside.suffix == ".txt"
    assert path.read_text() == "whole"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        _write(path, lambda beside: _fail(RuntimeError("half")), overwrite=True)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_that_appears_in_the_meantime_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(InputError, match="is there already"):
        _write(path, lambda beside: path.write_text("somebody else's"))
    assert path.read_text() == "somebody else's"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_places_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_free(tmp_path)
    with pytest.raises(FileError, match=r"there is no folder .*make it first"):
        check_free(tmp_path / "no" / "a.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FileError, match="is not writable"):
        check_free(tmp_path / "a.txt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(FileError, match="No space left on device; what was there before is as it was"):
        _write(path, lambda beside: Path("/dev/full").write_text("x"), overwrite=True)
    assert path.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import signal, time; from reptool.ship.files import replacing\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a background process does not have
        "with replacing('a.txt', overwrite=True) as beside:\n"
        "    beside.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    (tmp_path / "a.txt").write_text("old")
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root}, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) != 0
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_second_file_goes_along_or_neither_does(tmp_path: Path) -> None:
    target, second = tmp_path / "m.xml", tmp_path / "m.bin"

    def written(overwrite: bool, fails: bool) -> None:
        with replacing(target, overwrite) as beside, companion(target, beside, ".bin", overwrite):
            beside.write_text("graph")
            beside.with_suffix(".bin").write_text("weights")
            if fails:
                raise KeyError("in the middle")

    with pytest.raises(KeyError):
        written(False, True)
    assert list(tmp_path.iterdir()) == []
    written(False, False)
    assert (target.read_text(), second.read_text()) == ("graph", "weights")
    target.unlink()
    second.write_text("mine")
    with pytest.raises(InputError, match=r"m\.bin"):
        written(False, False)
    assert second.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]
