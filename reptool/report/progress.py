"""Progress: which phase long work is in, shown while it lasts and logged with its time.

The logger is ``reptool``: INFO for each phase when it ends, DEBUG for each unit of one. On a terminal work that takes
longer than `PATIENCE` seconds shows the phase that it is in and what it is at.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 2.0
LOGGER = logging.getLogger("reptool")


class Watch:
    """The phases of one call: how long each took, and what it is at.

    Args:
        what: what is done, in words.
        show: whether to show it; None for a terminal alone, and only once it takes long.
    """

    def __init__(self, what: str, show: bool | None = None) -> None:
        self.what, self.show = what, sys.stderr.isatty() if show is None else show
        self.began = time.perf_counter()
        self.after = 0.0 if show else PATIENCE
        self.seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = self.began
        self._console = Console(stderr=True)
        self._bar: Progress | None = None

    def enter(self, phase: str) -> None:
        """A phase begins, perhaps inside of another, whose time stands still meanwhile."""
        self._spend()
        self._phases.append(phase)
        self.tell("")

    def leave(self, total: float) -> None:
        """The innermost phase ends, after so many seconds."""
        self._spend()
        phase = self._phases.pop()
        level = logging.DEBUG if self._phases else logging.INFO  # what lies in another is a part of its time
        LOGGER.log(level, "%s: %s %.3f s", self.what, phase, total)

    def tell(self, unit: str) -> None:
        """What the innermost phase is at now."""
        if not self.show or time.perf_counter() - self.began < self.after:
            return
        phase = self._phases[-1] if self._phases else ""
        text = escape(" ".join(part for part in (f"{self.what}:", phase, unit) if part))
        if not (self._console.is_terminal or self._console.is_jupyter):
            if not unit and phase not in self._phases[:-1]:
                self._console.print(text, highlight=False)  # a line for each phase: nothing can be drawn over
            return
        if self._bar is None:
            columns: list[Any] = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=text)

    def close(self) -> None:
        """All is done: nothing is shown any more."""
        if self._bar is not None:
            self._bar.stop()

    def _spend(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self.seconds[self._phases[-1]] = self.seconds.get(self._phases[-1], 0.0) + now - self._since
        self._since = now


_CURRENT: ContextVar[Watch | None] = ContextVar("reptool_watch", default=None)


@contextmanager
def watched(what: str, show: bool | None = None) -> Iterator[Watch]:
    """Watch the phases of a call.

    Args:
        what: what is done, in words.
        show: see `Watch`.

    >>> with watched("deploy Net") as watch:
    ...     with phase("plan"):
    ...         unit("layer1")
    >>> list(watch.seconds)
    ['plan']
    """
    watch = Watch(what, show)
    token = _CURRENT.set(watch)
    try:
        yield watch
    finally:
        _CURRENT.reset(token)
        watch.close()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A phase of the call that is watched, if one is."""
    watch = _CURRENT.get()
    if watch is None:
        yield
        return
    began = time.perf_counter()
    watch.enter(name)
    try:
        yield
    finally:
        watch.leave(time.perf_counter() - began)


def unit(name: str) -> None:
    """One piece of a phase begins."""
    watch = _CURRENT.get()
    if watch is not None:
        LOGGER.debug("%s: %s", watch.what, name)
        watch.tell(name)
