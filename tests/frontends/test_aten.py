"""ATen's operators in terms of torch: the same values from the function that `lift` reads."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from reptool.frontends.aten import gives_first_alone, in_terms_of_torch

X = torch.randn(2, 4, 9, 8)
CASES: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "slice": (lambda x: x[:, 1:3], operator.getitem),
    "slice from behind": (lambda x: x[:, :, -4:], operator.getitem),
    "slice with a step": (lambda x: x[..., ::2], operator.getitem),
    "select": (lambda x: x[:, 2], operator.getitem),
    "constant_pad_nd": (lambda x: F.pad(x, (1, 2, -1, 0), value=3.0), F.pad),
    "upsample_nearest2d": (nn.Upsample(scale_factor=2), F.interpolate),
    "upsample_nearest2d, each axis": (lambda x: F.interpolate(x, scale_factor=(1.0, 3.0)), F.interpolate),
    "batch_norm": (nn.BatchNorm2d(4).eval(), torch.batch_norm),
}


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_operators_mean_what_they_meant(name: str, core: bool) -> None:
    function, wanted = CASES[name]

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    program = export(Called().eval(), (X,))
    program = program.run_decompositions() if core else program
    held = {**program.state_dict, **program.constants}
    known: dict[Any, Any] = {}
    for spec, node in zip(program.graph_signature.input_specs, program.graph.nodes, strict=False):
        known[node] = held.get(str(spec.target), X)
    made = []
    for node in (n for n in program.graph.nodes if n.op == "call_function" and n.target is not operator.getitem):
        called, args, kwargs = in_terms_of_torch(node)
        made.append(called)
        given = torch.fx.node.map_arg((args, kwargs), known.__getitem__)
        known[node] = called(*given[0], **given[1])
        known.update((u, known[node]) for u in node.users if gives_first_alone(node))
    torch.testing.assert_close(known[node], function(X))
    assert wanted in made or (not core and "pad" in name)  # `pad` is read as it is


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_by_what_is_there(mode: str, axes: int) -> None:
    x = torch.randn(2, *[6, 7, 8][:axes], 9)
    pads = [2, 1, 0, 2, 1, 1][: 2 * axes]
    graph = make_fx(lambda x: F.pad(x, pads, mode))(x).graph
    called, args, kwargs = in_terms_of_torch(next(n for n in graph.nodes if n.op == "call_function"))
    assert called is F.pad
    torch.testing.assert_close(called(x, *args[1:], **kwargs), F.pad(x, pads, mode))


class Training(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)  # type: ignore[no-any-return]


def test_a_norm_in_training_mode_stays_what_it_is() -> None:
    program = export(Training().train(), (X,))
    node = next(n for n in program.graph.nodes if "batch_norm" in str(n.target))
    assert in_terms_of_torch(node)[0] is node.target
