"""LargeKernelBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptool.blocks import LargeKernelBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, conv_bn
from tests.blocks.options import Option, large_kernel_options, randomize


@pytest.mark.parametrize("option", list(large_kernel_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    x, plain = option.inputs(), option.plain()
    terms = [conv_bn(x, branch, plain, training) for branch in block.branches.values()]
    torch.testing.assert_close(block(x), block.activation(sum(terms)), **TOLERANCE)


def test_branches() -> None:
    sizes = {name: branch.conv.kernel_size for name, branch in LargeKernelBlock(4, 4, 9).branches.items()}
    assert sizes == {"large": (9, 9), "small": (5, 5)}
    assert list(LargeKernelBlock(4, 4, small_kernel=None).branches) == ["large"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 8}, "odd"),
        ({"kernel_size": 7, "small_kernel": 4}, "odd"),
        ({"kernel_size": 7, "small_kernel": 9}, "small_kernel=9"),
        ({"groups": 3}, "divisor of 8"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LargeKernelBlock(8, 8, **arguments)
