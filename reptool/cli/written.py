"""What the command line writes: models and reports, by the ending of the file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from reptool.errors import InputError
from reptool.report.data import Report
from reptool.ship.export import export
from reptool.ship.files import check_free, replacing
from reptool.ship.runtimes import RUNTIMES, runtime_of
from reptool.ship.saving import save


def check_out(path: Path | None, inputs: Any, overwrite: bool) -> None:
    """Raise for a file that could not be written, before the work.

    Args:
        path: the file, None for none.
        inputs: example inputs, which an export needs.
        overwrite: whether it may be there already.
    """
    if path is None:
        return
    if not path.suffix:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"{str(path)!r} is there already; name a folder that is empty or not there yet")
        return
    if path.suffix != ".safetensors":
        runtime_of(path)
        if inputs is None:
            raise InputError(f"to export to {str(path)!r}, say what goes into the model: --inputs 1,3,224,224")
    check_free(path, overwrite)


def check_report(path: Path | None, overwrite: bool) -> None:
    """Raise for a report that could not be written, before the work."""
    if path is None:
        return
    if path.suffix not in (".html", ".json", ".md"):
        raise InputError(f"{str(path)!r}: a report is *.html, *.json or *.md")
    check_free(path, overwrite)


def write_out(path: Path, deployed: nn.Module, inputs: Any, original: nn.Module, overwrite: bool) -> Any:
    """Write a deployed model; what an export found, None for a file of weights and recipe."""
    if path.suffix in RUNTIMES:
        return export(deployed, inputs, path, original=original, overwrite=overwrite)
    if not path.suffix:
        saves: Any = getattr(deployed, "save_pretrained", None)
        if saves is None:
            raise InputError(f"{type(deployed).__name__} has no save_pretrained; give a file: --out model.safetensors")
        saves(str(path))
        return None
    save(deployed, path, overwrite=overwrite)
    return None


def write_report(path: Path, report: Report, overwrite: bool) -> None:
    """Write a report in the form that the file's name asks for."""
    text = {
        ".json": lambda: report.to_json() + "\n",
        ".md": report.to_markdown,
        ".html": report.to_html,
    }[path.suffix]()
    with replacing(path, overwrite) as beside:
        beside.write_text(text, "utf-8")


def as_json(value: Any) -> str:
    """Data as JSON, for programs."""
    return json.dumps(value, indent=2, default=str)
