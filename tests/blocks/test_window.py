"""The window that branches share."""

from __future__ import annotations

import random

import torch

from reptool.blocks._window import Crop, Window
from tests.blocks.formulas import CONVOLVE, TOLERANCE


def test_branches_are_centred_in_random_windows() -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    crops = 0
    for _ in range(200):
        dim = rng.choice([1, 2, 2, 3])
        outer = [rng.choice([3, 5, 7]) for _ in range(dim)]
        inner = [rng.choice([k for k in (1, 3, 5, 7) if k <= size]) for size in outer]
        dilation = tuple(rng.choice([1, 2]) for _ in range(dim))
        padding = tuple(rng.randrange(0, 8) for _ in range(dim))
        stride = tuple(rng.choice([1, 2, 3]) for _ in range(dim))
        window = Window.checked("test", 2, 3, tuple(outer), stride, padding, dilation, dim=dim)
        branch = window.conv(tuple(inner)).double()
        crops += any(isinstance(layer, Crop) for layer in branch)
        weight = branch.get_parameter("conv.weight")
        pads = [(o - i) // 2 for o, i in zip(reversed(outer), reversed(inner), strict=True) for _ in range(2)]
        full = torch.nn.functional.pad(weight, pads)
        x = torch.randn(2, 2, *(d * (k - 1) + 1 + rng.randrange(5) for d, k in zip(dilation, outer, strict=True)))
        expected = CONVOLVE[dim](x.double(), full, None, stride, padding, dilation)
        torch.testing.assert_close(branch(x.double()), expected, **TOLERANCE)
    assert crops > 50


def test_same_padding_keeps_the_shape() -> None:
    assert Window.checked("test", 4, 4, 5, dilation=3).keeps_shape
    assert not Window.checked("test", 4, 4, 5, padding=1).keeps_shape
    assert not Window.checked("test", 4, 4, 5, stride=2).keeps_shape
    assert not Window.checked("test", 4, 8, 5).keeps_shape
