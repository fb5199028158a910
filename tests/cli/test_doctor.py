"""What is installed is told, and what does not work is told with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from reptool.cli import doctor
from reptool.errors import InputError


def test_versions_of_what_there_is_and_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    found = doctor.versions()
    assert found["torch"]
    assert found["no-such-package"] == ""
    assert {"python", "machine"} <= found.keys()


def test_checks_try_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.checks()
    assert set(found) - {"export to *.xml", "export to *.pte"} == {
        "deploy",
        "save and load",
        "export to *.pt2",
        "export to *.onnx",
    }
    assert found["deploy"] == found["save and load"] == ""

    def fails(*_: Any) -> Any:
        raise InputError("no space")

    monkeypatch.setattr(doctor, "save", fails)
    assert doctor.checks()["save and load"] == "InputError: no space"
