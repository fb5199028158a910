"""DilatedReparamBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reptool.blocks import DilatedReparamBlock
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE, TOLERANCE, batch_norm
from tests.blocks.options import Option, dilated_reparam_options, randomize


@pytest.mark.parametrize("option", list(dilated_reparam_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    plain: Any = option.plain()
    x = option.inputs()
    expected = torch.zeros((), dtype=x.dtype)
    for name, branch in block.branches.items():
        dilation = 1 if name == "large" else int(name.split("r")[1])
        weight = branch.conv.weight
        sparse = torch.zeros(*weight.shape[:2], *plain.kernel_size, dtype=x.dtype)
        first = [
            (big - dilation * (small - 1)) // 2 for big, small in zip(plain.kernel_size, weight.shape[2:], strict=True)
        ]
        sparse[(..., *(slice(a, big - a, dilation) for a, big in zip(first, plain.kernel_size, strict=True)))] = weight
        y = CONVOLVE[option.dim](x, sparse, padding=plain.padding, groups=plain.groups)
        expected = expected + batch_norm(y, branch.bn, training)
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


def test_own_branches() -> None:
    assert list(DilatedReparamBlock(4, 9, [(3, 4), (5, 2)]).branches) == ["large", "k3r4", "k5r2"]


@pytest.mark.parametrize(
    ("kernel", "branches", "message"),
    [
        (3, None, "one of 5, 7"),
        (8, None, "odd"),
        (7, [(2, 1)], "odd"),
        (7, [(3, 4)], "use a larger kernel_size"),
        (7, [(3, 2), (3, 2)], "different"),
        (7, [(3, 0)], "different"),
    ],
)
def test_bad_arguments(kernel: int, branches: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        DilatedReparamBlock(8, kernel, branches)
