"""The fuzzer of changes counts what it finds and says how to see it again."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import reptool
from tests import fuzz, fuzz_perturb


def test_a_run_counts_and_shows_the_first_failure_of_each_kind() -> None:
    shown: list[str] = []
    tally, first = fuzz_perturb.run(range(3), tries=60, show=shown.append)
    assert (tally.networks, tally.crashes) == (3, 0)
    assert tally.found.tried == 180
    assert len(shown) == len(first)
    assert (
        tally.found.agreed + sum(tally.found.raised.values()) + tally.found.warned + sum(tally.faults.values()) == 180
    )
    assert "3 networks" in str(tally)
    for text in shown:
        assert "def make():" in text


def test_a_deploy_that_changes_nothing_has_no_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    import copy

    class Report:
        regions = ()

    def deploy(model: nn.Module, example_inputs: Any = None) -> nn.Module:
        return copy.deepcopy(model)

    monkeypatch.setattr(reptool, "deploy", deploy)
    monkeypatch.setattr(reptool, "report", lambda model: Report)
    tally, first = fuzz_perturb.run(range(15), tries=120)
    assert not first, "\n".join(first.values())
    assert tally.found.agreed == 15 * 120


def test_the_command_line_takes_kinds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fuzz", "--perturb", "--count", "2", "--seed", "0", "--tries", "20", "--kinds", "size", "batch"]
    monkeypatch.setattr("sys.argv", arguments)
    assert fuzz.main() == 0
    assert "2 networks" in capsys.readouterr().out
