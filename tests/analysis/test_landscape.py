"""Loss landscapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reptool.analysis import loss_landscape
from reptool.analysis.landscape import filter_normalized
from reptool.errors import InputError

DATA = [(torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6,))), (torch.randn(6, 3, 5, 5), torch.randint(0, 4, (6,)))]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 4)).eval()


def loss(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(float(nn.functional.cross_entropy(model(x), y)) for x, y in DATA) / 2


def test_directions_have_the_filters_lengths() -> None:
    net = network()
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    found = filter_normalized(parameters, torch.Generator().manual_seed(0))
    for name, value in parameters.items():
        if value.dim() > 1:
            torch.testing.assert_close(found[name].flatten(1).norm(dim=1), value.detach().flatten(1).norm(dim=1))
        else:
            assert not found[name].any()


@pytest.mark.parametrize("directions", [1, 2])
def test_grid_against_moving_the_weights(directions: int) -> None:
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = loss_landscape(net, DATA, nn.functional.cross_entropy, points=5, directions=directions, span=0.5)
    assert found.loss.shape == (5,) * directions
    assert found.centre == pytest.approx(loss(net), rel=1e-5)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(0)
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    ways = [filter_normalized(parameters, generator) for _ in range(directions)]
    with torch.no_grad():
        for name, value in parameters.items():
            for way, step in zip(ways, (0.5, -0.25), strict=False):
                value.add_(step * way[name])
    place: Any = (4, 1)[:directions]
    assert float(found.loss[place]) == pytest.approx(loss(net), rel=1e-4)


def test_statistics_stay_in_training_mode() -> None:
    net = network().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loss_landscape(net, DATA, nn.functional.cross_entropy, points=3, directions=1)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_flatness() -> None:
    net = network()
    found = loss_landscape(net, DATA, nn.functional.cross_entropy, points=5)
    assert found.share_below(float("inf")) == 1
    assert 0 < found.share_below(0) <= found.share_below(1)
    again = loss_landscape(net, DATA, nn.functional.cross_entropy, points=5)
    assert torch.equal(found.loss, again.loss)
    other = loss_landscape(net, DATA, nn.functional.cross_entropy, points=5, seed=1)
    assert not torch.equal(found.loss, other.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"points": 4}, "odd number"), ({"points": 1}, "odd number"), ({"directions": 3}, "1 or 2")],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss_landscape(network(), DATA, nn.functional.cross_entropy, **options)


def test_no_batches() -> None:
    with pytest.raises(InputError, match="no batches"):
        loss_landscape(network(), [], nn.functional.cross_entropy)
