"""QARepVGGBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptool.blocks import QARepVGGBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, batch_norm, centred, conv_bn, convolve
from tests.blocks.options import Option, qa_rep_vgg_options, randomize


@pytest.mark.parametrize("option", list(qa_rep_vgg_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    plain: Any = option.plain()
    x = option.inputs()
    y = conv_bn(x, block.branches.dense, plain, training)
    if "point" in block.branches:
        y = y + convolve(x, centred(block.branches.point.conv.weight, plain.kernel_size), plain)
    if "identity" in block.branches:
        y = y + x
    expected = block.activation(batch_norm(y, block.bn, training))
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ({}, ["dense", "point", "identity"]),
        ({"identity": False}, ["dense", "point"]),
        ({"stride": 2}, ["dense", "point"]),
        ({"kernel_size": 1}, ["dense", "identity"]),
    ],
)
def test_branches(arguments: dict[str, Any], branches: list[str]) -> None:
    assert list(QARepVGGBlock(8, 8, **arguments).branches) == branches


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="odd"):
        QARepVGGBlock(8, 8, 2)
    with pytest.raises(InputError, match="identity=True"):
        QARepVGGBlock(8, 12, identity=True)
