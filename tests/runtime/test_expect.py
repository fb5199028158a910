"""What a method that was written asks of its call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.expect import Like, fits, holds
from reptool.testing import randomize


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


def test_a_norm_whose_scale_is_in_other_layers_has_none_to_ask_for() -> None:
    model, x = randomize(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), 1).eval(), torch.randn(2, 4)
    deployed: Any = reptool.deploy(model, x)
    for name in ("weight", "bias"):
        with pytest.raises(SpecializedError, match=name):
            getattr(deployed[0], name)
    with pytest.raises(SpecializedError):
        deployed[0].reset_parameters()
    assert deployed[0].elementwise_affine
    assert "absorbed" in repr(deployed[0])
    exported = torch.export.export(deployed, (x,)).module()
    compiled = torch.compile(deployed, fullgraph=True, backend="eager")
    for made in (deployed, copy.deepcopy(deployed), exported, compiled, torch.jit.trace(deployed, x)):
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    released = reptool.release(deployed)
    assert released[0].weight is None
    assert not released[0].elementwise_affine
    torch.testing.assert_close(released(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_layer_under_whose_name_of_a_tensor_was_a_method_gives_it_to_its_own_code_alone() -> None:
    model, x = reptool.blocks.OREPA(4, 4).eval(), torch.randn(2, 4, 8, 8)
    deployed: Any = reptool.deploy(model, x)
    with pytest.raises(SpecializedError, match="method"):
        deployed.conv.weight()
    assert "conv.weight" in deployed.state_dict()
    compiled = torch.compile(deployed, fullgraph=True, backend="eager")
    for made in (deployed, compiled, torch.export.export(deployed, (x,)).module()):
        torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
    assert isinstance(reptool.release(deployed).conv.weight, nn.Parameter)


class OwnNorm(nn.LayerNorm):
    """A norm with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


def test_a_norm_with_code_of_its_own_is_shown() -> None:
    deployed = reptool.deploy(nn.Sequential(OwnNorm(4), nn.Linear(4, 4)).eval(), torch.randn(2, 4))
    assert not list(deployed[0].parameters())
    assert "OwnNorm" in repr(deployed)
