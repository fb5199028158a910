"""The fuzzer of front ends counts what it finds and says how to see it again."""

from __future__ import annotations

from typing import Any

import pytest

import reptool
from tests import fuzz_programs


def test_random_networks_agree_through_every_front_end() -> None:
    tally, failures = fuzz_programs.run(range(900, 904))
    assert not failures, failures[0]
    assert tally.networks == 4
    assert tally.outcomes["core", "right"] >= 3
    assert "core" in str(tally)


def test_a_deploy_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reptool.deploy

    def wrong(program: Any, *args: Any) -> Any:
        made = right(program, *args)
        for tensor in made.state_dict.values() if hasattr(made, "graph_signature") else ():
            tensor.data.mul_(1.01)
        return made

    monkeypatch.setattr(reptool, "deploy", wrong)
    shown: list[str] = []
    _, failures = fuzz_programs.run(range(900, 901), show=shown.append)
    assert failures == shown
    assert any("core: off by" in text for text in failures)
