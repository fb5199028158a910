"""Running the user's code: as it would run by itself, and without a trace in the program that it is a part of."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy
import torch

_CPU = torch.device("cpu")
_users_device: ContextVar[torch.device] = ContextVar("users_device", default=_CPU)


@contextmanager
def own_code() -> Iterator[None]:
    """Tensors that reptool makes for itself land on the CPU, whatever device is the default around it."""
    default = torch.get_default_device()
    token = _users_device.set(default)
    try:
        with _as_default(_CPU, default), young_garbage():
            yield
    finally:
        _users_device.reset(token)


_collecting = threading.Lock()
_thresholds: list[tuple[int, int, int]] = []  # of the program around, once for each thread that is inside
_NEVER = 2**31 - 1


@contextmanager
def young_garbage() -> Iterator[None]:
    """Only young objects are looked through for garbage: all those of a program that imports torch take 0.3 seconds.

    >>> before = gc.get_threshold()
    >>> with young_garbage():
    ...     gc.get_threshold()[2] > before[2]
    True
    >>> gc.get_threshold() == before
    True
    """
    with _collecting:
        before = _thresholds[0] if _thresholds else gc.get_threshold()
        _thresholds.append(before)
        gc.set_threshold(*before[:2], _NEVER)
    try:
        yield
    finally:
        with _collecting:
            _thresholds.pop()
            if not _thresholds:
                gc.set_threshold(*before)


@contextmanager
def users_device() -> Iterator[None]:
    """The default device is the one that was the default around reptool."""
    with _as_default(_users_device.get(), torch.get_default_device()):
        yield


@contextmanager
def users_code() -> Iterator[None]:
    """The user's code runs on the user's default device, and the generators that it draws from are set back."""
    state = Generators()
    try:
        with users_device():
            yield
    finally:
        state.restore()


def seed_all() -> None:
    """Every generator that `Generators` sets back starts from one number.

    `torch.manual_seed` takes a note for devices that nobody uses, with all lines of the stack that called it.
    """
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


def _as_default(device: torch.device, now: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if device == now else device


class Generators:
    """The state of the random number generators that a forward may draw from, as it is now."""

    def __init__(self) -> None:
        self.torch, self.python, self.numpy = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
        self.devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Set them back to this state."""
        torch.set_rng_state(self.torch)
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        if self.devices:
            torch.cuda.set_rng_state_all(self.devices)

    def untouched(self) -> bool:
        """Whether nothing was drawn since."""
        now = Generators()
        a: Any = self.numpy
        b: Any = now.numpy
        same = torch.equal(self.torch, now.torch) and self.python == now.python
        same = same and a[2] == b[2] and bool((a[1] == b[1]).all())
        return same and all(torch.equal(x, y) for x, y in zip(self.devices, now.devices, strict=False))
