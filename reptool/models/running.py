"""Running the user's code: as it would run by itself, and without a trace in the program that it is a part of."""

from __future__ import annotations

import random
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
        with _as_default(_CPU, default):
            yield
    finally:
        _users_device.reset(token)


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
