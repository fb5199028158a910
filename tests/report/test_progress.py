"""What long work says while it lasts: phases with their times, in the report, in the log and on the terminal."""

from __future__ import annotations

import logging
import threading
import time
from io import StringIO

import pytest
import torch
from rich.console import Console
from torch import nn

import reptool
from reptool.blocks import RepVGGBlock
from reptool.report import progress
from reptool.report.progress import Watch, phase, unit, watched


def model() -> nn.Module:
    """Two blocks."""
    return nn.Sequential(RepVGGBlock(3, 4), RepVGGBlock(4, 4)).eval()


def test_the_report_keeps_the_time_of_each_phase() -> None:
    began = time.perf_counter()
    report = reptool.report(reptool.deploy(model(), torch.randn(1, 3, 8, 8)))
    taken = time.perf_counter() - began
    assert list(report.seconds) == ["reference", "plan", "capture", "measure", "rehearse", "write", "compare"]
    assert all(s >= 0 for s in report.seconds.values())
    assert 0.3 * taken < sum(report.seconds.values()) <= taken
    assert report.to_dict()["seconds"] == report.seconds
    assert list(reptool.explain(model()).seconds) == ["reference", "plan", "capture"]


def test_phases_and_units_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "reptool"):
        reptool.deploy(model(), torch.randn(1, 3, 8, 8))
    phases = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    names = ["reference", "plan", "measure", "rehearse", "write", "rehearse", "compare"]
    assert [p.split()[2] for p in phases] == names
    assert all(p.startswith("deploy Sequential: ") and p.endswith(" s") for p in phases)
    units = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert "deploy Sequential: 0.branches.dense.conv" in units
    assert {r.name for r in caplog.records} == {"reptool"}


def test_nothing_is_logged_or_shown_by_default(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    reptool.deploy(model())
    reptool.deploy(model(), progress=False)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_where_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    reptool.deploy(model(), progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "deploy Sequential:" in shown.err


def test_a_terminal_is_told_only_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    watch = Watch("deploy Net", None)
    watch.enter("plan")
    watch.tell("layer1")
    assert watch._bar is None, "two seconds are not over"
    watch._console = Console(file=StringIO(), force_terminal=True)
    watch.began -= progress.PATIENCE
    watch.tell("layer2")
    assert watch._bar is not None
    assert watch._bar.tasks[0].description == "deploy Net: plan layer2"
    watch.close()
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert not Watch("deploy Net", None).show


def test_the_time_of_a_phase_inside_of_another_is_its_own() -> None:
    with watched("work") as watch, phase("outer"):
        time.sleep(0.01)
        with phase("inner"):
            time.sleep(0.05)
        with phase("inner"):
            unit("one")
    assert watch.seconds["inner"] >= 0.05
    assert 0.01 <= watch.seconds["outer"] < 0.05


def test_an_error_ends_what_is_shown_and_other_threads_have_their_own() -> None:
    seen: list[object] = []

    def broken() -> None:
        with watched("work", True) as watch, phase("first"):
            thread = threading.Thread(target=lambda: seen.append(progress._CURRENT.get()))
            thread.start()
            thread.join()
            seen.append(watch)
            raise KeyError("in between")

    with pytest.raises(KeyError):
        broken()
    assert seen[0] is None
    assert isinstance(seen[1], Watch)
    assert "first" in seen[1].seconds
    assert progress._CURRENT.get() is None
    with phase("nobody watches"):
        unit("nothing")
