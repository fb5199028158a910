"""Resampling commutes with pointwise layers, bias included; what does not is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptool.algebra.resampling import Resampling

KINDS: dict[str, Resampling] = {
    "average": Resampling("AvgPool2d", (("kernel_size", (2, 3)), ("stride", (2, 1)))),
    "adaptive": Resampling("AdaptiveAvgPool2d", (("output_size", (3, None)),)),
    "global": Resampling("AdaptiveAvgPool2d", (("output_size", 1),)),
    "nearest": Resampling("Upsample", (("scale_factor", 1.7),)),
    "exact": Resampling("Upsample", (("size", (9, 4)), ("mode", "nearest-exact"))),
    "bilinear": Resampling("Upsample", (("scale_factor", 2), ("mode", "bilinear"))),
    "aligned": Resampling("Upsample", (("scale_factor", 3), ("mode", "bilinear"), ("align_corners", True))),
    "bicubic": Resampling("Upsample", (("scale_factor", 0.7), ("mode", "bicubic"))),
    "area": Resampling("Upsample", (("scale_factor", 0.5), ("mode", "area"))),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(3, 3), (7, 5), (8, 11)])
def test_on_either_side(name: str, size: tuple[int, int]) -> None:
    resampling = KINDS[name]
    x, w, b = torch.randn(2, 5, *size).double(), torch.randn(4, 5, 1, 1).double(), torch.randn(4).double()
    behind, before = resampling.module()(F.conv2d(x, w, b)), F.conv2d(resampling.module()(x), w, b)
    torch.testing.assert_close(behind, before, rtol=1e-10, atol=1e-10)
    assert resampling.out_size(size) == tuple(behind.shape[2:])


def test_counted_padding_does_not() -> None:
    """The reason why a pooling that counts zeros is none: a bias does not cross it."""
    counted: Any = nn.AvgPool2d(3, 1, 1)
    x, w, b = torch.randn(1, 2, 5, 5).double(), torch.randn(2, 2, 1, 1).double(), torch.ones(2).double()
    off: Tensor = counted(F.conv2d(x, w, b)) - F.conv2d(counted(x), w, b)
    assert float(off[..., 1:-1, 1:-1].abs().max()) < 1e-12
    assert float(off.abs().max()) > 0.1


def test_equal_ones_are_equal_and_a_refused_size_stays() -> None:
    assert Resampling("AvgPool1d", (("kernel_size", 4),)) == Resampling("AvgPool1d", (("kernel_size", 4),))
    assert Resampling("AvgPool1d", (("kernel_size", 4),)).out_size((3,)) == (3,)
    assert str(KINDS["global"]) == "AdaptiveAvgPool2d(output_size=1)"
