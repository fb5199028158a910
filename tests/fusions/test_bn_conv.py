"""A norm by itself is a convolution."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import bn_kernel
from reptool.testing import bn_statistics

CONV: Any = (F.conv1d, F.conv2d, F.conv3d)


@given(
    bn_statistics(4),
    st.sampled_from([(1, 1), (3, 3), (2, 4), (1, 7), (3,), (2, 1, 3)]),
    st.sampled_from([None, 1, 2, 4]),
)
def test_the_kernel_is_the_norm(statistics: Any, size: tuple[int, ...], groups: int | None) -> None:
    mean, variance, gamma, beta, eps = statistics
    kept = [t.clone() if isinstance(t, Tensor) else t for t in statistics]
    weight, bias = bn_kernel(mean, variance, gamma, beta, eps, size, groups)
    x = torch.randn(2, 4, *(6, 5, 4)[: len(size)], dtype=torch.float64)
    pads = [p for k in reversed(size) for p in (k // 2, k - 1 - k // 2)]
    given_ = CONV[len(size) - 1](F.pad(x, pads), weight, bias, groups=4 if groups is None else groups)
    wanted = F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, eps)
    assert (given_ - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))
    bias.zero_()
    for now, before in zip(statistics, kept, strict=True):
        assert torch.equal(now, before) if isinstance(now, Tensor) else now == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_result_is_double_whatever_the_statistics_are(dtype: torch.dtype) -> None:
    weight, bias = bn_kernel(torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype))
    assert weight.dtype == bias.dtype == torch.float64


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(InputError, match="4 channels are not divisible by 3 groups"):
        bn_kernel(torch.zeros(4), torch.ones(4), groups=3)
