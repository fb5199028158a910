"""BNAndPad."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.blocks import BNAndPad
from reptool.errors import InputError
from tests.blocks.options import randomize


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_padding_commutes_with_normalization(padding: int, dim: int) -> None:
    module = randomize(BNAndPad(6, padding, dim=dim)).double().eval()
    x = torch.randn(2, 6, *(5, 7, 4)[:dim], dtype=torch.float64)
    expected = module.bn(nn.functional.pad(x, [padding] * 2 * dim))
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_statistics_do_not_count_the_border() -> None:
    padded, plain = BNAndPad(3, 2), nn.BatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5) + 2
    padded(x), plain(x)
    assert torch.equal(padded.bn.running_mean, plain.running_mean)
    assert torch.equal(padded.bn.running_var, plain.running_var)


def test_the_border_takes_no_gradient() -> None:
    module = BNAndPad(3, 1)
    module(torch.randn(2, 3, 4, 4))[:, :, 0].sum().backward()
    assert module.bn.bias.grad is not None
    assert module.bn.bias.grad.abs().max() == 0


def test_negative_padding() -> None:
    with pytest.raises(InputError, match="padding=-1"):
        BNAndPad(3, -1)
