"""A shortcut is a convolution with a Dirac kernel."""

import pytest
import torch
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import dirac_kernel


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (2, 2), (4, 3), (1, 7), (5,), (2, 1, 3), (3, 2, 2)])
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_the_dirac_kernel_is_the_identity(size: tuple[int, ...], groups: int) -> None:
    x = torch.randn(2, 6, *(7, 6, 5)[: len(size)], dtype=torch.float64)
    pads = [p for k in reversed(size) for p in (k // 2, k - 1 - k // 2)]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]
    kernel = dirac_kernel(6, size, groups)
    assert kernel.shape == (6, 6 // groups, *size)
    assert kernel.dtype == torch.float64
    assert torch.equal(conv(F.pad(x, pads), kernel, groups=groups), x)


@pytest.mark.parametrize("channels", [1, 4])
def test_of_a_linear_layer_it_is_the_unit_matrix(channels: int) -> None:
    assert torch.equal(dirac_kernel(channels), torch.eye(channels, dtype=torch.float64))


def test_groups_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(InputError, match="4 channels are not divisible by 3 groups"):
        dirac_kernel(4, (3, 3), 3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("channels", "out"), [(4, 8), (8, 4), (2, 6)])
def test_with_other_channels_out_it_is_the_initialization_of_torch(channels: int, out: int, groups: int) -> None:
    wanted = torch.nn.init.dirac_(torch.empty(out, channels // groups, 3, 5, dtype=torch.float64), groups)
    assert torch.equal(dirac_kernel(channels, (3, 5), groups, out), wanted)
    assert torch.equal(dirac_kernel(channels, (), groups, out), wanted[:, :, 1, 2])


def test_channels_out_that_groups_do_not_divide_are_an_error() -> None:
    with pytest.raises(InputError, match="3 channels are not divisible by 2 groups"):
        dirac_kernel(4, (3,), 2, 3)
