"""Deploying draws nothing from the generators of the program around it."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
import torch.nn.functional as F

import reptool
from reptool.running import users_code
from tests.traps import ConvBN, image, ready


def test_the_generators_are_set_back() -> None:
    with users_code():
        wanted = torch.rand(1), random.random(), numpy.random.rand()
    assert (torch.rand(1), random.random(), numpy.random.rand()) == wanted


def test_a_model_that_draws_moves_no_generator() -> None:
    class Draws(ConvBN):
        def forward(self, x: Any) -> Any:
            return self.bn(F.dropout(self.conv(x), 0.5))

    model = ready(Draws())
    state = torch.get_rng_state()
    reptool.deploy(model, image())
    assert torch.equal(torch.get_rng_state(), state)
