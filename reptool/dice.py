"""Random numbers: running a model on somebody's inputs must not move the generators that their program draws from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def kept_dice() -> Iterator[None]:
    """Set the generators of torch, Python and numpy back afterwards; every run within starts from the same state."""
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])
