"""IdentityConv1x1."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reptool.blocks import IdentityConv1x1
from reptool.errors import InputError


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_adds_the_identity_of_each_group(groups: int) -> None:
    conv = IdentityConv1x1(6, groups).double()
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), x + F.conv2d(x, conv.weight, groups=groups), rtol=1e-12, atol=1e-12)


def test_groups_must_divide() -> None:
    with pytest.raises(InputError, match="divisor of 6"):
        IdentityConv1x1(6, 4)
