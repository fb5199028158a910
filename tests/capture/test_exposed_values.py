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


class Weighing(nn.Module):
    """Gives out the parameter, or what it is made of, beside the value that it scales."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.form, self.scale = form, nn.Parameter(torch.tensor([1.5]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled value and the scale."""
        scale = self.scale.exp() if self.form == "made" else self.scale
        return self.norm(self.conv(x)) * scale, scale


class Weighed(nn.Module):
    """A model that has no use for the scale."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.part = Weighing(form)

    def forward(self, x: Tensor) -> Tensor:
        """The value alone."""
        return self.part(x)[0].relu()


@pytest.mark.parametrize("form", ["held", "made"])
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_a_parameter_that_a_method_gives_out_stays(form: str, example: bool, verify: bool) -> None:
    model, x = randomize(Weighed(form).eval()).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x if example else None, verify=verify)
    assert isinstance(deployed.part.norm, nn.Identity)
    for got, wanted in zip(deployed.part(x), model.part(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


class Showing(Weighing):
    """Gives out what its layer multiplies by."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the weight, or what is made of it."""
        y = self.norm(self.conv(x))
        return y, self.conv.weight if self.form == "held" else self.conv.weight.abs().sum()


class Showed(Weighed):
    """A model that has no use for the weight."""

    def __init__(self, form: str) -> None:
        super().__init__(form)
        self.part = Showing(form)


@pytest.mark.parametrize("form", ["held", "made"])
@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("verify", [True, False])
def test_a_weight_that_a_method_gives_out_is_not_changed(form: str, example: bool, verify: bool) -> None:
    model, x = randomize(Showed(form).eval()).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x if example else None, verify=verify)
    assert [r.code for r in reptool.report(deployed).refusals] == [reptool.Code.SHARED]
    for got, wanted in zip(deployed.part(x), model.part(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


class Cache:
    """Holds values, and is no structure that can be taken apart."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []


class Caching(Weighing):
    """Gives out an object that holds its values, as language models do."""

    def forward(self, x: Tensor) -> tuple[Tensor, Cache]:  # type: ignore[override]
        """The value and what was kept of it."""
        cache = Cache()
        y = self.norm(self.conv(x)).relu()
        cache.values.append(y)
        return y, cache


@pytest.mark.parametrize("example", [True, False])
def test_an_object_that_holds_values_may_be_given_out(example: bool) -> None:
    model, x = Weighed("held").eval(), torch.randn(2, 3, 9, 8)
    model.part = Caching("held").eval()
    deployed = reptool.deploy(randomize(model), x if example else None)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(deployed.part(x)[1].values, model.part(x)[1].values, rtol=1e-4, atol=1e-5)
