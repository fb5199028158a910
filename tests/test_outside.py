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
