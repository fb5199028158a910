"""Linear layers and pointwise convolutions."""

import pytest
import torch
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import full_to_linear, fuse_conv_linear, linear_to_full, linear_to_pointwise, pointwise_to_linear


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


@pytest.mark.parametrize("size", [(5,), (4, 3), (1, 6), (2, 3, 2)])
def test_a_linear_layer_on_a_whole_map_is_a_convolution(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(4, x[0].numel(), dtype=torch.float64)
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    full = linear_to_full(weight, size)
    torch.testing.assert_close(conv(x, full).flatten(1), F.linear(x.flatten(1), weight), rtol=1e-12, atol=1e-12)
    assert torch.equal(full_to_linear(full), weight)
    full.zero_()
    assert bool(weight.any())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((7,), (3,), (2,), (1,)), ((6, 5), (3, 2), (1, 2), (1, 0)), ((5, 5), (3, 3), (1, 1), (2, 2)),
        ((2, 3), (5, 1), (1, 1), (3, 0)), ((8, 7), (3, 3), (3, 4), (0, 1)),
        ((3, 3, 2), (2, 3, 1), (1, 1, 1), (1, 1, 0)),
    ],
)  # fmt: skip
def test_a_convolution_in_front_goes_into_it(
    size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], biased: bool,
    groups: int,
) -> None:  # fmt: skip
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    w1, b1 = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    between = conv(x, w1, b1 if biased else None, stride, padding, 1, groups).flatten(1)
    w2, b2 = torch.randn(3, between.shape[1], dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    weight, bias = fuse_conv_linear(
        w1, b1 if biased else None, w2, b2 if biased else None, size, stride, padding, groups
    )
    wanted = F.linear(between, w2, b2 if biased else None)
    torch.testing.assert_close(F.linear(x.flatten(1), weight, bias), wanted, rtol=1e-10, atol=1e-10)
    assert (bias is None) != biased


def test_maps_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(InputError, match="reads no map of"):
        linear_to_full(torch.ones(2, 7), (2, 2))
    with pytest.raises(InputError, match=r"writes 2 channels of \[3, 3\] positions, not 19 features"):
        fuse_conv_linear(torch.ones(2, 1, 3, 3), None, torch.ones(4, 19), None, (5, 5))
    with pytest.raises(InputError, match="stride"):
        fuse_conv_linear(torch.ones(2, 1, 3, 3), None, torch.ones(4, 18), None, (5, 5), stride=(1,))
