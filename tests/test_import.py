"""What ``import reptool`` costs, and what its names are."""

from __future__ import annotations

import subprocess
import sys

import pytest

import reptool


def told(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_next_to_nothing_beside_torch() -> None:
    code = "import sys, torch; before = set(sys.modules); import reptool; print(sorted(set(sys.modules) - before))"
    loaded = set(eval(told(code)))
    assert "reptool.runtime.legacy" in loaded
    assert len(loaded) < 20, loaded
    assert not {m for m in loaded if m.startswith(("rich", "triton", "reptool.api", "reptool.plan"))}


def test_every_public_name_is_what_it_says() -> None:
    assert set(reptool.__all__) <= set(dir(reptool))
    for name in reptool.__all__:
        assert getattr(reptool, name) is not None
    with pytest.raises(AttributeError, match="'reptool' has no attribute 'deply'"):
        _ = reptool.deply  # type: ignore[attr-defined]


def test_subpackages_are_attributes_and_report_stays_a_function() -> None:
    code = (
        "import reptool; print(reptool.fusions.__name__)\n"
        "import reptool.report.data; from reptool.report import text\n"
        "print(callable(reptool.report), reptool.report.__name__, text.__name__)"
    )
    assert told(code).split("\n") == ["reptool.fusions", "True report reptool.report.text"]
