"""RepNeXtUnit and RepNeXtBlock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptool.blocks import RepNeXtBlock, RepNeXtUnit
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE, TOLERANCE, batch_norm, centred, gradients
from tests.blocks.options import Option, randomize, rep_next_options


def unit_formula(unit: Any, x: Tensor, training: bool) -> Tensor:
    """One depthwise convolution whose kernels are embedded in the largest."""
    size = max(conv.kernel_size for conv in unit.convs)
    weight = torch.cat([centred(conv.weight, size) for conv in unit.convs])
    y = CONVOLVE[x.dim() - 2](x, weight, padding=size[0] // 2, groups=x.shape[1])
    return batch_norm(y, unit.bn, training)


@pytest.mark.parametrize("option", list(rep_next_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_unit(option: Option, training: bool) -> None:
    unit = randomize(option.build(), seed=5).double().train(training)
    x = option.inputs()
    torch.testing.assert_close(unit(x), unit_formula(unit, x, training), **TOLERANCE)


@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, nn.PReLU, None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_block(activation: Any, training: bool) -> None:
    block: Any = randomize(RepNeXtBlock(7, expansion=3, activation=activation)).double().train(training)
    x = torch.randn(2, 7, 9, 10, dtype=torch.float64)
    hidden = F.conv2d(unit_formula(block.unit, x, training), block.point1.weight, block.point1.bias)
    expected = F.conv2d(block.activation(hidden), block.point2.weight, block.point2.bias) + block.activation(x)
    torch.testing.assert_close(block(x), expected, **TOLERANCE)
    assert block.point1.out_channels == 21


@pytest.mark.parametrize("dim", [1, 3])
def test_block_along_other_axes(dim: int) -> None:
    block: Any = randomize(RepNeXtBlock(6, (5, 3), dim=dim)).double().eval()
    x = torch.randn(2, 6, *(7, 6, 5)[:dim], dtype=torch.float64)
    hidden = CONVOLVE[dim](unit_formula(block.unit, x, False), block.point1.weight, block.point1.bias)
    expected = CONVOLVE[dim](block.activation(hidden), block.point2.weight, block.point2.bias) + block.activation(x)
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


def test_gradients_reach_every_parameter_of_the_block() -> None:
    found = gradients(randomize(RepNeXtBlock(6)).double(), torch.randn(2, 6, 9, 9, dtype=torch.float64))
    assert min(found.values()) > 0


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="fewer kernels"):
        RepNeXtUnit(2, (7, 5, 3))
    with pytest.raises(InputError, match="at least one kernel"):
        RepNeXtUnit(2, ())
    with pytest.raises(InputError, match="odd"):
        RepNeXtUnit(4, (4,))
    with pytest.raises(InputError, match="expansion=0"):
        RepNeXtBlock(4, expansion=0)
