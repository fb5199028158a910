"""Constants that a forward writes are none."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.testing import randomize


class Written(nn.Module):
    """A kernel that is copied, and written before it is used."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weight, self.norm = nn.Parameter(torch.randn(6, 4, 3, 3)), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution with what was written."""
        kernel = self.weight.clone()
        if self.form == "item":
            kernel[:, :, 0] = 0
        elif self.form == "piece":
            kernel[:, :, 0] += 1
        elif self.form == "method":
            kernel.mul_(3)
        else:
            kernel = (self.weight + 1).mul_(3)
        return self.norm(F.conv2d(x, kernel, padding=1))


@pytest.mark.parametrize("form", ["item", "piece", "method", "chain"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_kernel_written_in_place_is_never_folded_as_it_was_before(form: str, verify: bool) -> None:
    model = randomize(Written(form).eval()).double()
    deployed = reptool.deploy(model, verify=verify)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    assert any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules()) == (form != "chain")


class Chosen(nn.Module):
    """`where` with a number, which torch asks whether a tensor is one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """The positive part."""
        y = self.norm(self.conv(x))
        return torch.where(y > 0, y, 0.0)


def test_functions_that_look_into_tensors_for_numbers_are_traced() -> None:
    model = randomize(Chosen().eval()).double()
    deployed = reptool.deploy(model)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules())


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
