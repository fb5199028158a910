"""An activation commutes with the concatenation of what it acts on."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import merge_siblings


@pytest.mark.parametrize("activation", [torch.relu, F.gelu, torch.sigmoid, lambda t: t * t])
@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_each_sibling_is_a_slice(axes: int, activation: object) -> None:
    run = (F.linear, F.conv1d, F.conv2d, F.conv3d)[axes]
    weights = [torch.randn(o, 3, *(2, 3, 1)[:axes], dtype=torch.float64) for o in (2, 4, 1)]
    biases = [torch.randn(2, dtype=torch.float64), None, torch.randn(1, dtype=torch.float64)]
    x = torch.randn(2, 3, *(6, 5, 4)[:axes], dtype=torch.float64)
    weight, bias, rows = merge_siblings(weights, biases)
    whole = activation(run(x, weight, bias))  # type: ignore[operator]
    for w, b, channels in zip(weights, biases, rows, strict=True):
        torch.testing.assert_close(whole[:, channels], activation(run(x, w, b)), rtol=1e-10, atol=1e-10)  # type: ignore[operator]


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(InputError, match="align them first"):
        merge_siblings([torch.ones(1, 2), torch.ones(1, 3)], [None, None])
