"""Gates: what they check of the values that a layer is given."""

from __future__ import annotations

import torch

import reptool
from tests.networks import random_network


def test_a_norm_that_moved_ahead_says_nothing_of_the_rank_behind_a_flatten() -> None:
    """Seed 165: part of a norm of images goes into a linear layer, behind which stands a norm of vectors."""
    model, inputs = random_network(165)
    deployed = reptool.deploy(model, inputs)
    torch.testing.assert_close(deployed(*inputs), model(*inputs), rtol=1e-3, atol=1e-4)
