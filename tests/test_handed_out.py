"""Values that an encoder gives out are there whether or not this model takes them."""

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.testing import randomize


class Encoder(nn.Module):
    """Every stage's value is given out; two of the layers could be one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.second = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        """One value a stage."""
        values = []
        for stage in (self.first, self.second):
            x = stage(x)
            values.append(x)
        return values


class Headed(nn.Module):
    """A model that takes the last value of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of two classes."""
        y: Tensor = self.head(self.encoder(x)[-1])
        return y


@pytest.mark.parametrize("example", [True, False])
def test_an_encoder_gives_all_it_gave_also_what_this_model_leaves_aside(example: bool) -> None:
    model = randomize(Headed().eval()).double()
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x) if example else reptool.deploy(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    for got, wanted in zip(deployed.encoder(x), model.encoder(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
