"""RepMixer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptool.blocks import RepMixer
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, batch_norm, conv_bn
from tests.blocks.options import Option, randomize, rep_mixer_options


@pytest.mark.parametrize("option", list(rep_mixer_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    x, plain = option.inputs(), option.plain()
    mixer = block.mixer.branches
    mixed = conv_bn(x, mixer.conv0, plain, training) + conv_bn(x, mixer.scale, plain, training)
    difference = mixed + batch_norm(x, mixer.identity, training) - batch_norm(x, block.norm, training)
    scale = 1 if block.layer_scale is None else block.layer_scale
    torch.testing.assert_close(block(x), x + scale * difference, **TOLERANCE)


def test_starts_close_to_the_identity() -> None:
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(RepMixer(8)(x), x, rtol=0, atol=1e-3)
    assert RepMixer(8, layer_scale=None).layer_scale is None


def test_even_kernel() -> None:
    with pytest.raises(InputError, match="odd"):
        RepMixer(8, 4)
