"""Kernels as the values of layers."""

import pytest
import torch

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Place, is_finite, values


def place(dtype: torch.dtype) -> Place:
    return Place(dtype, torch.device("cpu"))


def kernel(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Kernel:
    channels = Channels.grouped(weight.shape[1], weight.shape[0])
    return Kernel(channels, (Axis(3), Axis(3)), weight, bias, bias is not None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_holds_nan_or_infinity_is_found_wherever_it_stands(dtype: torch.dtype) -> None:
    for position in (0, 17, 63):
        for bad in (float("nan"), float("inf"), -float("inf")):
            tensor = torch.randn(4, 16).to(dtype)
            assert is_finite(tensor)
            tensor.view(-1)[position] = bad
            assert not is_finite(tensor)
    assert is_finite(torch.zeros(0, 3))


def test_values_are_cast_and_tell_nan_from_what_does_not_fit() -> None:
    weight, bias = torch.randn(2, 3, 3, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = values(kernel(weight, bias), place(torch.float16))
    assert not isinstance(found, Refusal)
    assert torch.equal(found[0], weight.half())
    assert torch.equal(found[1], bias.half())  # type: ignore[arg-type]
    large = values(kernel(weight * 1e6), place(torch.float16))
    assert isinstance(large, Refusal)
    assert large.code is Code.OVERFLOW
    broken = values(kernel(weight, bias * float("nan")), place(torch.float32))
    assert isinstance(broken, Refusal)
    assert broken.code is Code.NON_FINITE


def test_values_share_nothing_with_the_kernel() -> None:
    weight, bias = torch.randn(2, 3, 3, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = values(kernel(weight, bias), Place(torch.float64, torch.device("cpu"), memory_format))
        assert not isinstance(found, Refusal)
        assert found[0].untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
        assert found[1].untyped_storage().data_ptr() != bias.untyped_storage().data_ptr()  # type: ignore[union-attr]
        assert found[0].is_contiguous(memory_format=memory_format)
