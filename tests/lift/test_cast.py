"""Casts of a value: the identity of floating-point numbers, where nothing is rounded to fewer digits than before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.errors import SpecializedError

Cast = Callable[[nn.Module, Tensor], Tensor]


class Beside(nn.Module):
    """Two layers of one value, which is cast for the second; the sum is cast back."""

    def __init__(self, cast: Cast, dtype: torch.dtype) -> None:
        super().__init__()
        self.base, self.beside = nn.Linear(6, 5).to(dtype), nn.Linear(6, 5, bias=False)
        self.cast = cast

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + self.beside(self.cast(self, x))).to(y.dtype)


def run(cast: Cast, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module, Tensor, set[str]]:
    torch.manual_seed(0)
    model, x = nn.Sequential(Beside(cast, dtype), nn.ReLU()).eval(), torch.randn(3, 6).to(dtype)
    deployed = reptool.deploy(model, x)
    return model, deployed, x, {r.code.value for r in reptool.report(deployed).refusals}


def layers(model: nn.Module) -> int:
    return sum(isinstance(m, nn.Linear) for m in model.modules())


@pytest.mark.parametrize(
    "cast",
    [
        lambda m, x: x.float(),
        lambda m, x: x.to(torch.float32),
        lambda m, x: x.to(dtype=m.beside.weight.dtype),
        lambda m, x: x.type(torch.float32),
        lambda m, x: x.double().float(),
        lambda m, x: x.to(x.dtype),
    ],
)
def test_a_cast_that_changes_no_number_is_the_identity(cast: Cast) -> None:
    model, deployed, x, _ = run(cast)
    assert layers(deployed) == 1
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-6)
    with pytest.raises((SpecializedError, RuntimeError)):
        deployed(x.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_layer_with_a_wide_one_beside_it_is_one_narrow_layer(dtype: torch.dtype) -> None:
    model, deployed, x, _ = run(lambda m, x: x.float(), dtype)
    assert layers(deployed) == 1
    assert deployed(x).dtype == dtype
    exact = nn.Sequential(Beside(lambda m, x: x, torch.float64).double(), nn.ReLU())
    exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    with torch.no_grad():
        wanted = exact(x.double())
        error = float((deployed(x).double() - wanted).abs().max())
    assert error <= 4 * torch.finfo(dtype).eps * float(wanted.abs().max())
    with pytest.raises(SpecializedError):
        deployed.float()(x.float())


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_a_cast_to_fewer_digits_is_a_rounding(narrow: torch.dtype) -> None:
    model, deployed, x, codes = run(lambda m, x: x.to(narrow).float())
    assert layers(deployed) == 2
    assert "dtype" in codes
    assert torch.equal(deployed(x), model(x))


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.float()) + self.b(x.float())


def test_whole_numbers_are_cast_as_they_stand() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Counts()).eval(), torch.randint(0, 9, (3, 6))
    deployed = reptool.deploy(model, x)
    torch.testing.assert_close(deployed(x), model(x))
    torch.testing.assert_close(deployed(x.float() / 2), model(x.float() / 2))
