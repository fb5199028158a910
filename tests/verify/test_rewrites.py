"""Networks before and behind a rewrite: every difference shows, whatever the size and magnitude at which it does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reptool.errors import InputError
from reptool.verify.rewrites import EXACT, Compared, inputs_for


class Odd(nn.Module):
    """The identity but for one thing."""

    def __init__(self, odd: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.odd = odd

    def forward(self, x: Tensor) -> Tensor:
        """Nearly what it is given."""
        return self.odd(x)


X = torch.randn(2, 3, 12, 9, generator=torch.Generator().manual_seed(0))
WRONG: dict[str, Callable[[Tensor], Tensor]] = {
    "small": lambda x: x if x.shape[-1] > 2 else x + 1,
    "large": lambda x: x.clamp(-40, 40),
    "rounding": lambda x: x.float().double(),
    "offset": lambda x: x + 1e-6 * x.abs().max(),
    "batch": lambda x: x if len(x) == 2 else x + 1,
    "raises": lambda x: x if x.shape[-1] > 2 else x.nothing,  # type: ignore[attr-defined]
    "nan": lambda x: torch.where(x > 2, torch.nan, x),
    "shape": lambda x: x[:, :2],
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_differences_show(case: str) -> None:
    compared = Compared(Odd(), inputs_for(Odd(), (X,), {}))
    assert compared.error(Odd()) == 0.0
    assert not compared.error(Odd(WRONG[case])) <= EXACT


def test_inputs_are_in_float64_at_several_sizes_and_left_as_they_are() -> None:
    found = inputs_for(Odd(), (X,), {})
    shapes = {tuple(given[0].shape) for given in found}  # type: ignore[index]
    assert len(shapes) == 7
    compared = Compared(Odd(lambda x: x.mul_(2)), found)
    assert compared.error(Odd(lambda x: 2 * x)) == 0.0
    assert found[0][0].dtype is torch.float64  # type: ignore[index]


def test_sizes_that_the_original_refuses_are_left_out() -> None:
    conv = nn.Conv2d(3, 2, 5).double()
    compared = Compared(conv, inputs_for(conv, None, {}))
    assert 2 <= len(compared.cases) < 9
    assert compared.error(conv) == 0.0


def test_what_nobody_shows_is_asked_for() -> None:
    with pytest.raises(InputError, match="example_inputs"):
        inputs_for(Odd(), None, {})
    with pytest.raises(InputError, match="not on both"):
        inputs_for(Odd(), (X,), {"y": X})
