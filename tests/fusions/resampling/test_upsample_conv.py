"""Nearest upsampling and a convolution as one transposed convolution, against the two in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from reptool.errors import InputError
from reptool.fusions import fuse_upsample_conv, upsample_kernel
from reptool.fusions.resampling.upsample_conv import border_behind_transposed, conv_behind_transposed

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_equal_at_every_border(data: st.DataObject) -> None:
    axes, groups = data.draw(st.integers(1, 3)), data.draw(st.sampled_from((1, 2, 4)))
    size = [data.draw(st.integers(1, 5 if axes < 3 else 3)) for _ in range(axes)]
    factors = [data.draw(st.integers(1, 5 if axes < 3 else 3)) for _ in range(axes)]
    padding = [data.draw(st.integers(0, k - 1)) for k in size]
    image = [data.draw(st.integers(1, 9 if axes < 3 else 4)) for _ in range(axes)]
    x = torch.randn(data.draw(st.integers(0, 2)), 4, *image, dtype=torch.float64)
    w, b = torch.randn(8, 4 // groups, *size, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    up = x
    for i, f in enumerate(factors):
        up = up.repeat_interleave(f, i + 2)
    if any(n + 2 * p < k for n, p, k in zip(up.shape[2:], padding, size, strict=True)):
        return  # nothing is left
    before = w.clone()
    made, pads = fuse_upsample_conv(w, factors, padding, groups)
    assert torch.equal(w, before)
    assert made.shape == (4, 8 // groups, *(k + f - 1 for k, f in zip(size, factors, strict=True)))
    wanted = CONV[axes](up, w, b, padding=padding, groups=groups)
    got = TRANSPOSED[axes](x, made, b, stride=factors, padding=pads, groups=groups)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_what_is_wrong_differs() -> None:
    """A phase swapped, a border off by one, padding counted as image: each is seen."""
    x, w = torch.randn(1, 2, 4, 5).double(), torch.randn(3, 2, 3, 3).double()
    wanted = F.conv2d(F.interpolate(x, scale_factor=2), w, padding=1)
    made, (pad, _) = fuse_upsample_conv(w, (2, 2), (1, 1))

    def off(weight: torch.Tensor, padding: int, image: torch.Tensor = x) -> float:
        got = F.conv_transpose2d(image, weight, stride=2, padding=padding)
        return float(
            (got[..., : wanted.shape[2], : wanted.shape[3]] - wanted[..., : got.shape[2], : got.shape[3]]).abs().max()
        )

    assert off(made, pad) < 1e-12
    swapped = made[..., [1, 0, 3, 2]]
    counted = F.pad(x, (1, 1, 1, 1), mode="replicate")
    assert off(swapped, pad) > 0.1
    assert off(made, pad + 1) > 0.1
    assert off(made, pad + 2, counted) > 0.1


def test_dtype_is_kept_and_sums_are_worked_out_in_double() -> None:
    w = torch.tensor([[[1.0, 2.0**-12, 1.0]]], dtype=torch.float16)
    made, _ = fuse_upsample_conv(w, (3,), (1,))
    assert made.dtype == torch.float16
    assert made.flatten()[2] == (w.double().sum()).half()


@pytest.mark.parametrize(("factors", "padding", "groups"), [
    ((2,), (1, 1), 1), ((0, 2), (1, 1), 1), ((2, 2), (3, 1), 1), ((2, 2), (-1, 1), 1), ((2, 2), (1, 1), 4),
])  # fmt: skip
def test_bad_input(factors: tuple[int, ...], padding: tuple[int, ...], groups: int) -> None:
    with pytest.raises(InputError, match="give"):
        fuse_upsample_conv(torch.zeros(6, 2, 3, 3), factors, padding, groups)


def test_a_factor_below_one() -> None:
    with pytest.raises(InputError, match="factors of one and more"):
        upsample_kernel(2, (2, 0))


def test_strides() -> None:
    up = (2, 2, 0, 0, 1)
    whole = conv_behind_transposed((3, 2, 1, 1, 1), up, False)
    assert whole is not None
    assert (whole.size, whole.stride, whole.before, whole.end) == (2, 1, 1, 0)
    assert conv_behind_transposed((3, 3, 1, 1, 1), up, False) is None
    assert conv_behind_transposed((3, 3, 1, 1, 1), up, True) is None
    assert conv_behind_transposed((1, 2, 1, -1, 0), (1, 2, 0, 1, 1), False) is None  # reads none of what is written


@pytest.mark.parametrize(("conv", "first", "biased", "why"), [
    ((3, 1, 1, 1, 1), (2, 2, 0, 0, 1), False, ""), ((3, 1, 1, 1, 1), (2, 2, 0, 0, 1), True, "bias"),
    ((3, 1, 1, 0, 0), (2, 2, 0, 0, 1), True, ""), ((3, 1, 1, -1, -1), (4, 2, 1, 0, 1), True, ""),
    ((3, 1, 1, 1, 0), (4, 2, 1, 0, 1), False, "read"), ((3, 1, 1, 0, 1), (4, 2, 1, 0, 1), False, "read"),
    ((3, 1, 1, 0, 1), (4, 2, 1, 1, 1), False, ""),
])  # fmt: skip
def test_borders(conv: Any, first: Any, biased: bool, why: str) -> None:
    assert border_behind_transposed(conv, first, biased) == why
