"""Random numbers that this thread draws, told from those that other threads draw from the same generators.

The generators of `torch`, of `random` and of `numpy.random` belong to the whole process: that their state has changed
says that somebody drew. Where other threads run, what was run is run once more, and watched: every operation of torch
that draws carries a tag, and `random` draws by calls of a generator's methods. `numpy` cannot be watched: it was not
this thread if the state stays in one of a few runs.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reptool.models.running import Generators

MAX_RUNS = 10
_DRAWING = frozenset({"random", "getrandbits", "seed", "manual_seed"})  # and not what reads a state or sets it back


def drew_since(generators: Generators, run: Callable[[], object]) -> bool:
    """Whether this thread has drawn since; then the generators are set back.

    Args:
        generators: their state before.
        run: runs once more what was run since.
    """
    drew = not generators.untouched() and drew_itself(run)
    if drew:
        generators.restore()
    return drew


def drew_itself(run: Callable[[], object]) -> bool:
    """Whether it was this thread that drew, where a generator is found to have changed.

    Args:
        run: runs once more what was run; may raise.
    """
    if len(sys._current_frames()) == 1:
        return True  # there is nobody else
    for _ in range(MAX_RUNS):
        before: Any = numpy.random.get_state()
        with _Watch() as watch, contextlib.suppress(Exception):  # what was drawn until the user's code raised is seen
            run()
        after: Any = numpy.random.get_state()
        if watch.seen:
            return True
        if before[2] == after[2] and bool((before[1] == after[1]).all()):
            return False
    return True


class _Watch(TorchDispatchMode):
    """Sees what this thread draws from the generators of torch and of `random`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False
        self._before: Any = None

    def __enter__(self) -> _Watch:
        self._before = sys.getprofile()
        super().__enter__()
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.setprofile(self._before)
        super().__exit__(*error)

    def _called(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "c_call":
            drawing = isinstance(getattr(what, "__self__", None), (random.Random, torch.Generator))
            self.seen |= drawing and what.__name__ in _DRAWING
        if self._before is not None:
            self._before(frame, event, what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
