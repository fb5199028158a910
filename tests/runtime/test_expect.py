"""What a method that was written asks of its call."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.expect import Like, fits, holds


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (torch.zeros(2, 3), Like((-1, 3)), True),
        (torch.zeros(1, 3), Like((-2, 3)), False),
        (torch.zeros(0, 3), Like((-1, 3)), False),
        (torch.zeros(2, 3, 1), Like((-1, 3)), False),
        (None, Like((-1, 3)), False),
        (torch.zeros(3), Like((3,), torch.float64), False),
        (torch.zeros(3), Like((3,), None, "cpu"), True),
        (0, False, False),
        (1.0, 1, False),
        ([torch.zeros(3), 1], (Like((3,)), 1), True),
        ([torch.zeros(3)], (Like((3,)), 1), False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
    ],
)
def test_fits(value: object, wanted: object, expected: bool) -> None:
    assert fits(value, wanted) is expected
    assert holds((value,), (wanted,)) is expected
    assert not holds((value,))


class Plain(nn.Module):
    """A tensor that no conversion reaches, behind a layer that is a module."""

    def __init__(self, constant: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.constant = nn.Linear(4, 4), constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.constant


class Functional(Plain):
    """The same behind one that is a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias) * self.constant


@pytest.mark.parametrize("kind", [Plain, Functional])
@pytest.mark.parametrize("warm", [False, True])
def test_a_tensor_that_is_folded_and_no_conversion_reaches_keeps_its_dtype(kind: type[Plain], warm: bool) -> None:
    model, x = kind(torch.rand(4) + 0.5).eval(), torch.randn(2, 4)
    deployed = reptool.deploy(model, x)
    if warm:
        deployed(x)
    for dtype in (torch.bfloat16, torch.float16):
        assert copy.deepcopy(model).to(dtype)(x.to(dtype)).dtype is torch.float32
        with pytest.raises(SpecializedError, match="no parameter or buffer"):
            copy.deepcopy(deployed).to(dtype)(x.to(dtype))
    wide = copy.deepcopy(deployed).double()(x.double())
    torch.testing.assert_close(wide, copy.deepcopy(model).double()(x.double()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(deployed(x), model(x))


@pytest.mark.parametrize("kind", [Plain, Functional])
def test_a_number_without_axes_takes_the_dtype_of_what_it_meets(kind: type[Plain]) -> None:
    model, x = kind(torch.tensor(1.5)).eval(), torch.randn(2, 4)
    deployed = reptool.deploy(model, x).to(torch.bfloat16)
    given, wanted = deployed(x.bfloat16()), model.to(torch.bfloat16)(x.bfloat16())
    assert given.dtype is wanted.dtype is torch.bfloat16
    torch.testing.assert_close(given, wanted, rtol=0.1, atol=0.1)
