"""Methods that are only tried do nothing outside of the model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import reptool
from reptool.capture.evaluation.contained import contained
from reptool.ir.trace import Unanswerable
from tests.traps import ConvBN, norms, ready

WAYS: dict[str, Callable[[Path], Any]] = {
    "open": lambda p: p.open("w"),
    "append": lambda p: p.open("a"),
    "save": lambda p: torch.save({"a": 1}, p),
    "remove": lambda p: p.unlink(),
    "rename": lambda p: p.rename(p.with_suffix(".old")),
    "folder": lambda p: p.with_suffix(".d").mkdir(),
    "process": lambda p: subprocess.run([sys.executable, "-c", f"open({str(p)!r}, 'w')"]),
    "shell": lambda p: os.system(f"rm {p}"),
    "network": lambda p: socket.create_connection(("127.0.0.1", 9)),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_reaches_outside_is_stopped(way: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_text("as it was")
    with contained(), pytest.raises(Unanswerable, match="only tried"):
        WAYS[way](path)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_reading_goes_on_and_so_does_everything_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": 1}, path)
    with contained():
        assert torch.load(path) == {"a": 1}
        assert os.listdir(tmp_path) == ["weights.pt"]
    torch.save({"a": 2}, path)
    assert torch.load(path) == {"a": 2}


class Saves(ConvBN):
    """Methods that save weights where the model keeps its file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def save(self) -> None:
        torch.save(list(self.conv.parameters()), self.path)

    def note(self) -> None:
        with open(self.path, "w") as file:
            file.write(str(self.conv.weight.sum()))


def test_deploying_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_text("as it was")
    assert norms(reptool.deploy(ready(Saves(str(path))))) == 0
    assert path.read_text() == "as it was"
