"""Variants of a network: each is changed in one thing, and the network itself stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptool.testing._near_misses import variants


class Flagged(nn.Module):
    """A layer and a plain attribute that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.factor, self.on = nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), 2, True

    def forward(self, x: Tensor) -> Tensor:
        """Scaled, or not."""
        return self.act(self.conv(x)) * (self.factor if self.on else 1)  # type: ignore[no-any-return]


def test_each_is_another_network() -> None:
    model = Flagged().double().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = 30 * torch.randn(2, 2, 8, 7).double()
    found = dict(variants(model))
    assert {"on = False", "factor = 3", "act is Tanh()", "conv.padding = (0, 0)", "conv has no bias"} <= found.keys()
    assert {"conv.padding_mode = 'reflect'", "conv.stride = (2, 2)", "conv.bias is negative"} <= found.keys()
    wanted = model(x)
    for said, other in found.items():
        given = other(x)
        assert given.shape != wanted.shape or not torch.equal(given, wanted), said
    assert torch.equal(model(x), wanted)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert (model.factor, model.on, type(model.act)) == (2, True, nn.ReLU)
