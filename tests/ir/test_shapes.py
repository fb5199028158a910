"""Operations that preserve the shape of their first argument, against torch."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from reptool.ir.shapes import SAME_SHAPE, SAME_SHAPE_MODULES, keeps_shape

MORE = {
    "softmax": (1,),
    "log_softmax": (1,),
    "layer_norm": ((4,),),
    "group_norm": (1,),
    "rms_norm": ((4,),),
    "pow": (2,),
}


def test_every_name_is_one_of_an_operation_that_keeps_the_shape() -> None:
    tried = 0
    for name in SAME_SHAPE - {"barrier", "setitem", "batch_norm", "to", "type_as"}:
        function = next(f for h in (F, torch.Tensor, torch) if callable(f := getattr(h, name, None)))
        given = (0, 1) if name.startswith(("clamp", "hardtanh")) else MORE.get(name, ())
        x = torch.rand(2, 3, 4, 4)
        assert function(x, *given).shape == x.shape, name
        tried += 1
    assert tried > 40


@pytest.mark.parametrize("cls", SAME_SHAPE_MODULES)
def test_every_module_keeps_the_shape(cls: type[nn.Module]) -> None:
    given = {nn.LayerNorm: (4,), nn.RMSNorm: (4,), nn.GroupNorm: (1, 3), nn.Softmax: (1,), nn.LogSoftmax: (1,)}
    cls = {nn.modules.batchnorm._NormBase: nn.BatchNorm2d, nn.modules.dropout._DropoutNd: nn.Dropout}.get(cls, cls)
    arguments = (3,) if cls is nn.BatchNorm2d else given.get(cls, ())
    assert cls(*arguments)(torch.rand(2, 3, 4, 4)).shape == (2, 3, 4, 4)


@pytest.mark.parametrize("name", ["pow", "clamp"])
def test_a_tensor_beside_it_may_have_more_axes(name: str) -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    function = getattr(torch, name)
    assert function(torch.rand(3), torch.rand(2, 1)).shape == (2, 3)
    assert not keeps_shape(graph.call_function(function, (x, y)))
    assert keeps_shape(graph.call_function(function, (x, 2.0)))


def test_a_sum_does_not() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    assert not keeps_shape(x)
    assert not keeps_shape(graph.call_function(operator.add, (x, x)))
    assert not keeps_shape(graph.call_method("sum", (x,)))
