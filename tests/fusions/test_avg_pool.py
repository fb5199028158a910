"""An average pooling is a convolution with a constant kernel."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import avg_pool_kernel

POOL: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
CONV: Any = (F.conv1d, F.conv2d, F.conv3d)


@pytest.mark.parametrize(
    ("size", "padding"), [((3, 3), 1), ((2, 2), 0), ((1, 4), 0), ((2, 3), 1), ((3,), 1), ((2, 1, 3), 0)]
)
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernel_is_the_pooling(size: tuple[int, ...], padding: int, groups: int | None, stride: int) -> None:
    axes = len(size) - 1
    x = torch.randn(2, 4, *(9, 8, 7)[: len(size)], dtype=torch.float64)
    kernel = avg_pool_kernel(4, size, groups)
    assert kernel.shape == (4, 4 // (4 if groups is None else groups), *size)
    assert kernel.dtype == torch.float64
    y = CONV[axes](x, kernel, None, stride, padding, 1, 4 if groups is None else groups)
    torch.testing.assert_close(y, POOL[axes](x, size, stride, padding), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divisor", [1, 5])
def test_a_divisor_replaces_the_number_of_taps(divisor: int) -> None:
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    wanted = F.avg_pool2d(x, (2, 3), 1, 0, divisor_override=divisor)
    given = F.conv2d(x, avg_pool_kernel(2, (2, 3), divisor=divisor), groups=2)
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(InputError, match="4 channels are not divisible by 3 groups"):
        avg_pool_kernel(4, (2, 2), 3)
