"""Containment: code that is only tried writes no files, starts no processes and talks to nobody.

Methods that a model's forward does not call are run to see what they do with its layers. One that saves, exports or
downloads something is stopped where it reaches outside, and counts as a method that cannot be run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch

from reptool.ir.trace import Unanswerable

_TRIED: ContextVar[bool] = ContextVar("tried", default=False)
_REACHES = (
    "os.",
    "shutil.",
    "subprocess.",
    "socket.",
    "tempfile.",
    "urllib.",
    "http.",
    "ftplib.",
    "smtplib.",
    "sqlite3.",
)
_ONLY_READS = ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr", "os.listxattr")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@contextmanager
def contained() -> Iterator[None]:
    """While this is open, code of this thread that reaches outside raises `Unanswerable`.

    >>> with contained():
    ...     open("weights.pt", "w")
    Traceback (most recent call last):
    ...
    reptool.ir.trace.Unanswerable: code that is only tried would open 'weights.pt'
    """
    _listen()
    writer, token = torch._C.PyTorchFileWriter, _TRIED.set(True)

    def checked(*args: Any, **kwargs: Any) -> Any:  # it writes by itself, and Python hears nothing of that
        if _TRIED.get():
            raise Unanswerable("code that is only tried would save something")
        return writer(*args, **kwargs)

    torch._C.PyTorchFileWriter = checked  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch._C.PyTorchFileWriter = writer  # type: ignore[misc]
        _TRIED.reset(token)


@cache
def _listen() -> None:
    sys.addaudithook(_heard)


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if not _TRIED.get():
        return
    if event == "open" and isinstance(args[2], int) and args[2] & _WRITES:
        raise Unanswerable(f"code that is only tried would open {args[0]!r}")
    if event.startswith(_REACHES) and event not in _ONLY_READS:
        raise Unanswerable(f"code that is only tried would reach outside ({event})")
