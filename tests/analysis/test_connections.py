"""Connection degrees."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reptool.analysis import connection_degree, refocused
from reptool.blocks import RefConv
from reptool.blocks.parametrizations import refconv
from reptool.errors import InputError


def by_response(layer: RefConv) -> Tensor:
    """What each basis channel adds to each transformed one, found by putting the map's entries apart."""
    convmap = layer.convmap
    assert isinstance(convmap, nn.Conv2d)
    count = convmap.out_channels
    size = convmap.kernel_size[0]
    found = torch.zeros(count, count, dtype=torch.float64)
    for j in range(count):
        image = torch.zeros(1, count, 2 * size - 1, 2 * size - 1)
        image[0, j, size - 1, size - 1] = 1
        with torch.no_grad():
            found[:, j] = convmap(image)[0].double().abs().sum((1, 2))
    return found


@pytest.mark.parametrize(
    "layer",
    [
        RefConv(6, 6, 3, groups=6),
        RefConv(4, 6, 3, groups=2),
        RefConv(3, 4, 5, map_kernel_size=5),
        RefConv(4, 4, 3, map_groups=2),
    ],
    ids=["depthwise", "grouped", "dense", "map-groups"],
)
def test_against_the_response_of_the_map(layer: RefConv) -> None:
    found = connection_degree(layer, None).degree
    torch.testing.assert_close(found, by_response(layer), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(connection_degree(layer, 5).degree, found[:5, :5])


def test_share_of_the_diagonal() -> None:
    assert connection_degree(RefConv(4, 4, 3)).own_share == pytest.approx(1.0)
    assert connection_degree(RefConv(8, 8, 3, groups=8)).own_share < 0.5
    assert connection_degree(RefConv(4, 4, 3, init="zeros")).own_share == 0


def test_parametrized_layers_and_parts() -> None:
    layer = refconv(nn.Conv2d(4, 4, 3, groups=4))
    part = refocused(layer)[""]
    torch.testing.assert_close(connection_degree(layer).degree, connection_degree(part).degree)


def test_bad_layers() -> None:
    with pytest.raises(InputError, match="no filter between"):
        connection_degree(RefConv(4, 4, 3, transform=torch.neg))
    with pytest.raises(InputError, match="2 refocused layers"):
        connection_degree(nn.Sequential(RefConv(4, 4, 3), RefConv(4, 4, 3)))
    with pytest.raises(InputError, match="nothing in this"):
        connection_degree(nn.Conv2d(4, 4, 3))
