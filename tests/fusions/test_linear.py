"""Linear layers and pointwise convolutions."""

import pytest
import torch
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import linear_to_pointwise, pointwise_to_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_linear_to_pointwise_is_the_same_map(axes: int, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 3).to(dtype)
    kernel = linear_to_pointwise(weight, axes)
    assert kernel.dtype == dtype
    x = torch.randn(2, *(4, 3, 2)[:axes], 3, dtype=torch.float64)
    conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    y = conv(x.movedim(-1, 1), kernel.double()).movedim(1, -1)
    torch.testing.assert_close(y, F.linear(x, weight.double()), rtol=1e-12, atol=1e-12)
    assert torch.equal(pointwise_to_linear(kernel), weight)
    kept = weight.clone()
    kernel.zero_()
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("writes", [6, 12])
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_pointwise_to_linear_is_the_same_map(groups: int, writes: int, axes: int) -> None:
    weight = torch.randn(writes, 6 // groups, *[1] * axes, dtype=torch.float64)
    kept = weight.clone()
    matrix = pointwise_to_linear(weight, groups)
    x = torch.randn(4, 6, dtype=torch.float64)
    wanted = F.conv1d(x[..., None], weight.reshape(writes, -1, 1), groups=groups)[..., 0]
    torch.testing.assert_close(F.linear(x, matrix), wanted, rtol=1e-12, atol=1e-12)
    matrix.zero_()
    assert torch.equal(weight, kept)


def test_bad_input_is_an_error() -> None:
    with pytest.raises(InputError, match=r"\[O, C\], got \(1, 1, 1\)"):
        linear_to_pointwise(torch.ones(1, 1, 1))
    with pytest.raises(InputError, match="not pointwise"):
        pointwise_to_linear(torch.ones(2, 2, 3))
    with pytest.raises(InputError, match="not pointwise"):
        pointwise_to_linear(torch.ones(2))
    for groups in (2, 4, 0):  # chunks of unequal height would be a wrong matrix, not an error
        with pytest.raises(InputError, match=f"3 output channels are not divisible by {groups} groups"):
            pointwise_to_linear(torch.ones(3, 1, 1), groups)
