"""`deploy` and `explain` of an ONNX file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

import reptool
from reptool.cli.written import as_json, write_report
from reptool.errors import InputError
from reptool.report.data import Report
from reptool.ship.files import check_free


def deploy(
    spec: str, out: Path | None, report: Path | None, overwrite: bool, json: bool, options: dict[str, Any]
) -> int:
    """Collapse an ONNX file, and write the result to another one.

    Args:
        spec: the file.
        out: where to, ``*.onnx``.
        report: where the report goes.
        overwrite: whether files may be replaced.
        json: whether data for programs is printed.
        options: those of `reptool.deploy`.
    """
    if out is not None:
        if out.suffix != ".onnx":
            raise InputError(f"{str(out)!r}: a collapsed ONNX model is written as *.onnx")
        check_free(out, overwrite)
    made = reptool.deploy(spec, progress=False if json else None, **{k: v for k, v in options.items() if v})
    if out is not None:
        reptool.save(made, out, overwrite=overwrite)
        print(f"written: {out}", file=sys.stderr)
    return told(reptool.report(made), report, overwrite, json)


def told(found: Report, report: Path | None, overwrite: bool, json: bool) -> int:
    """Print a report, and write it where that was asked for."""
    if report is not None:
        write_report(report, found, overwrite)
        print(f"written: {report}", file=sys.stderr)
    if json:
        print(as_json({"report": found.to_dict()}))
    else:
        Console(soft_wrap=False).print(found)
    return 0
