"""IdentityConv1x1."""

from __future__ import annotations

import pytest
import torch

from reptool.blocks import IdentityConv1x1
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_adds_the_identity_of_each_group(groups: int, dim: int) -> None:
    conv = IdentityConv1x1(6, groups, dim=dim).double()
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 6, *(3, 4, 5)[:dim], dtype=torch.float64)
    expected = x + CONVOLVE[dim](x, conv.weight, groups=groups)
    torch.testing.assert_close(conv(x), expected, rtol=1e-12, atol=1e-12)


def test_groups_must_divide() -> None:
    with pytest.raises(InputError, match="divisor of 6"):
        IdentityConv1x1(6, 4)
