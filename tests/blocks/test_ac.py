"""ACBlock."""

from __future__ import annotations

import pytest
import torch

from reptool.blocks import ACBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE, conv_bn
from tests.blocks.options import Option, ac_options, randomize


@pytest.mark.parametrize("option", list(ac_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block = randomize(option.build(), seed=5).double().train(training)
    assert isinstance(block, ACBlock)
    plain = option.plain()
    for size in (11, 12, 13) if option.dim == 2 else (5, 6):
        x = option.inputs(size)
        terms = [conv_bn(x, branch, plain, training) for branch in block.branches.values()]
        torch.testing.assert_close(block(x), block.activation(sum(terms)), **TOLERANCE)


@pytest.mark.parametrize(
    ("kernel", "padding", "crop", "vertical"),
    [
        (3, 1, None, (1, 0)),
        (3, 0, (-1, -1, 0, 0), (0, 0)),
        (5, 1, (-1, -1, 0, 0), (1, 0)),
        (5, 2, None, (2, 0)),
        (5, 3, None, (3, 1)),
        (5, 6, None, (6, 4)),
    ],
)
def test_vertical_branch(kernel: int, padding: int, crop: tuple[int, ...] | None, vertical: tuple[int, int]) -> None:
    branch = ACBlock(4, 4, kernel, padding=padding).branches["vertical"]
    assert branch.get_submodule("conv").padding == vertical
    assert [m.pads for n, m in branch.named_children() if n == "crop"] == ([] if crop is None else [crop])


def test_kernel_sizes() -> None:
    sizes = [branch.get_submodule("conv").kernel_size for branch in ACBlock(4, 4, 5).branches.values()]
    assert sizes == [(5, 5), (5, 1), (1, 5)]


def test_gamma_init() -> None:
    block = ACBlock(4, 4, gamma_init=0.25)
    assert all((branch.get_parameter("bn.weight") == 0.25).all() for branch in block.branches.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 1}, "from 3 on"),
        ({"kernel_size": (3, 5)}, "from 3 on"),
        ({"padding": -1}, "padding=-1"),
        ({"groups": 3}, "divisor of 8"),
        ({"dim": 1}, "2 or 3 axes"),
        ({"affine": False, "gamma_init": 0.5}, "affine"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ACBlock(8, 8, **arguments)  # type: ignore[arg-type]
