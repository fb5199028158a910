"""Kernels as the values of layers."""

import pytest
import torch
from torch import nn

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry, Place, geometry_of, is_finite, new_layer, values


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


@pytest.mark.parametrize(
    ("shape", "like"),
    [
        (Geometry("linear", 3, 2), nn.Linear(3, 2)),
        (Geometry("conv", 4, 2, (3, 1), (2, 1), (1, 0), (1, 1), 2), nn.Conv2d(4, 2, (3, 1), (2, 1), (1, 0), groups=2)),
        (
            Geometry("transposed", 4, 2, (3,), (2,), (1,), (1,), 1, output_padding=(1,)),
            nn.ConvTranspose1d(4, 2, 3, 2, 1, 1),
        ),
    ],
)
def test_layers_of_one_geometry_share_nothing(shape: Geometry, like: nn.Module) -> None:
    weight, bias = like.weight.detach(), like.bias.detach()  # type: ignore[operator, union-attr]
    one, other = new_layer(shape, weight + 1, bias), new_layer(shape, weight, bias)
    assert geometry_of(one) == geometry_of(like) == shape
    assert torch.equal(one.weight, weight + 1)  # type: ignore[arg-type, operator]
    assert torch.equal(other.weight, weight)  # type: ignore[arg-type]
    assert {one.training, other.training} == {False}
    one.register_forward_hook(lambda *_: None)
    one.extra = nn.Identity()
    assert not {**other._forward_hooks, **other._modules, **new_layer(shape, weight, None)._modules}
    assert repr(new_layer(shape, weight, bias)) == repr(like)
    tables = [{id(v) for v in vars(m).values() if isinstance(v, (dict, set))} for m in (one, other)]
    assert not tables[0] & tables[1]
