"""EdgeOrientedBlock and EdgeFilter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reptool.blocks import EdgeFilter, EdgeOrientedBlock
from reptool.errors import InputError
from tests.blocks.formulas import TOLERANCE
from tests.blocks.options import Option, edge_oriented_options, randomize

SOBEL = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
MASKS = {
    "sobel_x": SOBEL,
    "sobel_y": SOBEL.T,
    "laplacian": torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64),
}


def point_padded_with_its_bias(x: Tensor, point: Any) -> Tensor:
    """1x1 without padding, then a border of its bias, as the paper has it."""
    y = F.conv2d(x, point.weight, point.bias)
    n, c, h, w = y.shape
    padded = point.bias.view(1, -1, 1, 1).expand(n, c, h + 2, w + 2).clone()
    padded[:, :, 1:-1, 1:-1] = y
    return padded


@pytest.mark.parametrize("option", list(edge_oriented_options()), ids=lambda o: o.id)
def test_formula(option: Option) -> None:
    block: Any = randomize(option.build(), seed=5).double()
    x = option.inputs()
    dense, (point, wide) = block.branches.dense, block.branches.expand
    y = F.conv2d(x, dense.weight, dense.bias, padding=1)
    y = y + F.conv2d(point_padded_with_its_bias(x, point), wide.weight, wide.bias)
    for name, mask in MASKS.items():
        point, edge = block.branches[name]
        filters = edge.scale * mask
        y = y + F.conv2d(point_padded_with_its_bias(x, point), filters, edge.bias, groups=edge.channels)
    if "identity" in block.branches:
        y = y + x
    torch.testing.assert_close(block(x), block.activation(y), **TOLERANCE)


def test_masks_are_fixed_and_saved() -> None:
    edge = EdgeFilter(4, "sobel_x")
    assert [name for name, _ in edge.named_parameters()] == ["scale", "bias"]
    assert list(edge.state_dict()) == ["scale", "bias", "mask"]


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="equal channels"):
        EdgeOrientedBlock(8, 12, identity=True)
    with pytest.raises(InputError, match="at least one channel"):
        EdgeOrientedBlock(8, 8, 0.01)
    with pytest.raises(InputError, match="positive"):
        EdgeOrientedBlock(0, 8)
    with pytest.raises(InputError, match="laplacian"):
        EdgeFilter(4, "prewitt")
