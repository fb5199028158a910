"""Constants that a forward writes are none, and what it leaves behind."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.testing import randomize
from tests.traps import Branches, ConvBN, assert_same, check, codes, image, ready


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
    assert any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules()) == (form == "piece")


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


class Logs(Branches):
    """Its forward adds to what the module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.seen: dict[str, int] = {}


class Appends(Logs):
    def forward(self, x: Any) -> Any:
        self.log.append("called")
        return self.a(x) + self.b(x)


class Enters(Logs):
    def forward(self, x: Any) -> Any:
        self.seen["called"] = 1
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("model", [Appends, Enters])
def test_a_method_that_adds_to_what_its_module_holds_is_not_written_anew(model: type[Logs]) -> None:
    _, report = check(ready(model()), calls={"held": lambda m, x: (m(x), torch.tensor([len(m.log), len(m.seen)]))})
    assert "method" in codes(report)
    assert len(report.regions) == 2


class Domain(ConvBN):
    def __init__(self) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.register_buffer("domain", torch.tensor(1))
        self.register_buffer("use", torch.tensor(True))
        self.domain: Tensor
        self.use: Tensor


class Picks(Domain):
    def forward(self, x: Any) -> Any:
        return self.bns[int(self.domain)](self.conv(x))


class Asks(Domain):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        if self.use:
            y = self.bn(y)
        return y


def _switched(model: Any, x: Any) -> Any:
    model.domain.fill_(2)
    model.use.fill_(False)
    return model(x)


@pytest.mark.parametrize("model", [Picks, Asks])
@pytest.mark.parametrize("keep", [False, True])
def test_numbers_in_a_buffer_that_decide_are_not_fixed(model: type[Domain], keep: bool) -> None:
    made = ready(model())
    deployed = reptool.deploy(made, image(), keep_fallback=keep)
    assert codes(reptool.report(deployed)) == {"specialized"}
    assert_same(made(image()), deployed(image()))
    assert_same(_switched(made, image()), _switched(deployed, image()))


def test_shapes_of_weights_decide_as_they_did() -> None:
    class Sized(Domain):
        def forward(self, x: Any) -> Any:
            return self.bn(self.conv(x)) if self.conv.weight.shape[0] == 4 else x

    deployed, _ = check(ready(Sized()))
    assert deployed.get_submodule("bn").extra_repr() == "BatchNorm2d, in 'conv'"
