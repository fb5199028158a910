"""Average magnitude matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.analysis import average_magnitude, refocused, skeletons
from reptool.analysis.skeleton import centre_share
from reptool.blocks import RefConv
from reptool.errors import InputError


def test_mean_of_absolute_values() -> None:
    kernel = torch.randn(5, 3, 3, 4)
    found = average_magnitude(kernel, normalize=False)
    for h in range(3):
        for w in range(4):
            wanted = sum(abs(float(v)) for v in kernel[:, :, h, w].flatten()) / 15
            assert float(found[h, w]) == pytest.approx(wanted)
    assert float(average_magnitude(kernel).max()) == 1
    torch.testing.assert_close(average_magnitude(kernel), found / found.max())
    assert not average_magnitude(torch.zeros(2, 2, 3)).any()
    with pytest.raises(InputError, match="expected"):
        average_magnitude(torch.ones(3, 3))


def test_of_a_refocused_layer() -> None:
    layer = RefConv(4, 4, 3, groups=2)
    found, part = skeletons(layer), refocused(layer)[""]
    torch.testing.assert_close(found.basis, average_magnitude(layer.weight))
    torch.testing.assert_close(found.transformed, average_magnitude(layer.transformed_weight()))
    torch.testing.assert_close(found.increment, average_magnitude(part.transformed - part.basis))
    with pytest.raises(InputError, match="2 refocused layers"):
        skeletons(nn.Sequential(layer, RefConv(4, 4, 3)))


def test_share_of_the_centre() -> None:
    matrix = torch.zeros(3, 3)
    matrix[1] = matrix[:, 1] = 1
    assert centre_share(matrix) == 1
    assert centre_share(1 - matrix) == 0
    assert centre_share(torch.ones(5)) == pytest.approx(0.2)
