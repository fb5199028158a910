"""One convolution after another."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import fuse_1x1_kxk, fuse_kxk_1x1, fuse_sequential
from reptool.fusions.sequential import carry_bias, contract, scale_columns

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, stride: list[int], padding: list[int]) -> Tensor:
    return CONVOLUTION[x.dim() - 2](x, weight, bias, stride, padding, 1, groups)


@st.composite
def two_layers(draw: st.DrawFn, first_tap: bool = False, second_tap: bool = False) -> tuple[object, ...]:
    count = draw(st.sampled_from([2, 1, 3]))
    most = 2 if count == 3 else 4
    groups_f, groups_g = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 4), (4, 2), (4, 4), (2, 2), (3, 2)]))
    reads, between, writes = (groups_f * draw(st.integers(1, 2)), 12, groups_g * draw(st.integers(1, 2)))
    size_f = [1 if first_tap else draw(st.integers(1, most)) for _ in range(count)]
    size_g = [1 if second_tap else draw(st.integers(1, most)) for _ in range(count)]
    stride = [draw(st.integers(1, 2)) for _ in range(count)]
    seed = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=seed, dtype=torch.float64)

    return (
        values(between, reads // groups_f, *size_f),
        values(between) if draw(st.booleans()) else None,
        values(writes, between // groups_g, *size_g),
        values(writes) if draw(st.booleans()) else None,
        groups_f,
        groups_g,
        stride,
    )


def check(case: tuple[object, ...], fused: tuple[Tensor, Tensor | None, int], stride: list[int]) -> None:
    first, first_bias, second, second_bias, groups_f, groups_g, _ = case
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    assert isinstance(groups_f, int)
    assert isinstance(groups_g, int)
    weight, bias, groups = fused
    count = first.dim() - 2
    padding = [size // 2 for size in first.shape[2:]]
    none, ones = [0] * count, [1] * count
    x = torch.randn(2, first.shape[1] * groups_f, *(13, 12, 11)[:count], dtype=torch.float64)
    y = layer(x, first, first_bias, groups_f, stride, padding)  # type: ignore[arg-type]
    wanted = layer(y, second, second_bias, groups_g, ones, none)  # type: ignore[arg-type]
    merged = layer(x, weight, bias, groups, stride, padding)
    assert (merged - wanted).abs().max() <= 1e-10 * max(1.0, float(wanted.abs().max()))
    assert weight.shape[1] * groups == first.shape[1] * groups_f
    assert groups % _gcd(groups_f, groups_g) == 0
    assert (bias is None) == (first_bias is None and second_bias is None)


def _gcd(a: int, b: int) -> int:
    return max(g for g in range(1, a + 1) if a % g == 0 and b % g == 0)


@given(two_layers())
def test_fuse_sequential_is_one_after_the_other(case: tuple[object, ...]) -> None:
    kept = [t.clone() if isinstance(t, Tensor) else t for t in case]
    fused = fuse_sequential(*case)  # type: ignore[arg-type]
    check(case, fused, case[-1])  # type: ignore[arg-type]
    for t in fused[:2]:
        if isinstance(t, Tensor):
            t.zero_()  # nothing given back is what was given
    for now, before in zip(case, kept, strict=True):
        assert torch.equal(now, before) if isinstance(now, Tensor) else now == before  # type: ignore[arg-type]


@given(two_layers(first_tap=True))
def test_fuse_1x1_kxk_is_one_after_the_other(case: tuple[object, ...]) -> None:
    fused = fuse_1x1_kxk(*case[:6])  # type: ignore[arg-type]
    first = case[0]
    assert isinstance(first, Tensor)
    check(case, fused, [1] * (first.dim() - 2))


@given(two_layers(second_tap=True))
def test_fuse_kxk_1x1_is_one_after_the_other(case: tuple[object, ...]) -> None:
    first = case[0]
    assert isinstance(first, Tensor)
    check(case, fuse_kxk_1x1(*case[:6]), [1] * (first.dim() - 2))  # type: ignore[arg-type]


def test_a_biased_pointwise_layer_padded_itself_takes_an_unpadded_one_behind_it() -> None:
    first, shift, second = (
        torch.randn(4, 3, 1, 1).double(),
        torch.randn(4).double(),
        torch.randn(2, 4, 3, 3).double(),
    )
    weight, bias, _ = fuse_1x1_kxk(first, shift, second, None)
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    wanted = F.conv2d(F.conv2d(x, first, shift, padding=1), second)
    torch.testing.assert_close(F.conv2d(x, weight, bias, padding=1), wanted, rtol=1e-10, atol=1e-10)


def test_a_strided_pointwise_layer_before_a_kxk_one_leaves_no_dilation_behind() -> None:
    first, second = torch.randn(3, 2, 1, dtype=torch.float64), torch.randn(4, 3, 3, dtype=torch.float64)
    weight, bias, groups = fuse_sequential(first, None, second, None, first_stride=[2])
    assert weight.shape == (4, 2, 5)
    assert not weight[..., 1::2].any()
    x = torch.randn(2, 2, 11, dtype=torch.float64)
    wanted = F.conv1d(F.conv1d(x, first, stride=2), second)
    torch.testing.assert_close(F.conv1d(x, weight, bias, 2, 0, 1, groups), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_cast_once(dtype: torch.dtype) -> None:
    first, second = torch.randn(4, 3, 3).to(dtype), torch.randn(2, 4, 1).to(dtype)
    shift = torch.randn(4).to(dtype)
    weight, bias, _ = fuse_sequential(first, shift, second, None)
    exact, exact_bias, _ = fuse_sequential(first.double(), shift.double(), second.double(), None)
    assert bias is not None
    assert exact_bias is not None
    assert torch.equal(weight, exact.to(dtype))
    assert torch.equal(bias, exact_bias.to(dtype))


@pytest.mark.parametrize(("kg", "kf", "sg", "sf"), [*product((1, 2, 3), (1, 2, 3), (1, 2), (1, 3))])
def test_contract_is_the_product_of_polynomials(kg: int, kf: int, sg: int, sf: int) -> None:
    second, first = torch.randn(2, 3, 4, kg), torch.randn(2, 4, 5, kf)
    out = contract(second, first, [sg], [sf])
    wanted = torch.zeros(2, 3, 5, sg * (kg - 1) + sf * (kf - 1) + 1)
    for i, j in product(range(kg), range(kf)):
        wanted[..., sg * i + sf * j] += second[..., i] @ first[..., j]
    torch.testing.assert_close(out, wanted)


def test_carry_bias_is_what_a_constant_becomes() -> None:
    weight, bias = torch.randn(3, 2, 3, 2).double(), torch.randn(2).double()
    wanted = F.conv2d(bias.reshape(1, 2, 1, 1).expand(1, 2, 3, 2), weight).flatten()
    torch.testing.assert_close(carry_bias(weight, bias), wanted)
    blocks = carry_bias(torch.stack([weight, -weight]), torch.stack([bias, bias]))
    torch.testing.assert_close(blocks, torch.stack([wanted, -wanted]))
    torch.testing.assert_close(carry_bias(weight[..., 0, 0], bias), weight[..., 0, 0] @ bias)


def test_bad_input_is_an_error() -> None:
    with pytest.raises(InputError, match="reads 5 channels, the first writes 4"):
        fuse_sequential(torch.ones(4, 3, 3), None, torch.ones(2, 5, 1), None)
    with pytest.raises(InputError, match=r"first kernel .* is not pointwise"):
        fuse_1x1_kxk(torch.ones(4, 3, 3), None, torch.ones(2, 4, 1), None)
    with pytest.raises(InputError, match=r"second kernel .* is not pointwise"):
        fuse_kxk_1x1(torch.ones(4, 3, 3), None, torch.ones(2, 4, 2), None)
    with pytest.raises(InputError, match=r"write \(4, 2\) channels do not have \(3, 1\) groups"):
        fuse_sequential(torch.ones(4, 3, 3), None, torch.ones(2, 4, 1), None, first_groups=3)
    with pytest.raises(InputError, match="equally many axes"):
        fuse_sequential(torch.ones(4, 3, 3), None, torch.ones(2, 4, 3, 3), None)


def test_scale_columns_is_a_layer_behind_a_scale() -> None:
    weight, x = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    scale = torch.randn(3, dtype=torch.float64)
    wanted = F.conv2d(x * scale[:, None, None], weight)
    torch.testing.assert_close(F.conv2d(x, scale_columns(weight, scale[None])), wanted)
    torch.testing.assert_close(F.conv2d(x, scale_columns(weight, scale.expand(4, 3))), wanted)
