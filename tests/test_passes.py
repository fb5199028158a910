"""`Collapse` in a pass manager, and `compile_pass` in what `torch.compile` does before it writes code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx
from torch.export import export
from torch.fx.passes.infra.pass_manager import PassManager

import reptool
from reptool.blocks import RepVGGBlock
from reptool.errors import RegionWarning
from reptool.passes import Collapse
from reptool.testing import randomize


def test_a_pass_manager_collapses_and_says_whether_it_did() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    module = export(model, (x,)).module()
    made = PassManager([Collapse()])(module)
    assert made.modified
    assert reptool.report(made.graph_module).norms == (1, 0)
    torch.testing.assert_close(made.graph_module(x), model(x))
    assert not PassManager([Collapse()])(made.graph_module).modified
    assert not PassManager([Collapse(exclude="0")])(module).modified


class Compiled:
    """A model as `torch.compile` hands it to inductor's code generation, which is left out; the graphs stand there."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.graphs: list[fx.Graph] = []
        self.run = torch.compile(model, backend=self._backend, **options)

    def _backend(self, module: fx.GraphModule, inputs: list[Tensor]) -> Any:
        return compile_fx(module, inputs, inner_compile=cast(Any, self._kept))

    def _kept(self, module: fx.GraphModule, inputs: Sequence[Any], **_: Any) -> Callable[[list[Any]], Any]:
        self.graphs.append(module.graph)

        def run(args: list[Any]) -> Any:
            return module(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def layers(self) -> int:
        return sum("conv" in str(n.target) or "mm" in str(n.target) or "linear" in str(n.target)
                   for g in self.graphs for n in g.nodes if n.op == "call_function")  # fmt: skip


class Net(nn.Module):
    """Branches, a norm behind a linear layer, and a weight that is given out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = RepVGGBlock(3, 8, stride=2)
        self.head = nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.body(x).mean((2, 3))).sigmoid() * self.scale, self.scale

    def weight(self) -> Tensor:
        return self.get_parameter("body.branches.dense.conv.weight")


@pytest.fixture(autouse=True)
def _compiled_anew() -> Any:
    torch._dynamo.reset()
    with config.patch(joint_custom_pre_pass=reptool.compile_pass, force_disable_caches=True):
        yield
    torch._dynamo.reset()


def net() -> Net:
    torch.manual_seed(0)
    return randomize(Net()).eval()


@torch.no_grad()
def test_what_is_compiled_with_frozen_weights_is_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    compiled = Compiled(model, dynamic=True)
    with config.patch(freezing=True), caplog.at_level(logging.INFO, "reptool.passes"):
        for size in ((2, 8, 9), (3, 12, 10)):
            x = torch.randn(size[0], 3, *size[1:])
            torch.testing.assert_close(compiled.run(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(compiled.graphs) == 1
    assert compiled.layers() == 2
    assert "3 layers became 2" in caplog.text


def test_what_learns_stays() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    with config.patch(freezing=True):
        Compiled(model).run(x)[0].sum().backward()
        assert model.weight().grad is not None
        torch._dynamo.reset()
        no_gradients = Compiled(model.requires_grad_(False))  # inductor freezes where gradients are disabled
        no_gradients.run(x)
    assert no_gradients.layers() == 3


@torch.no_grad()
def test_weights_that_are_not_frozen_stay_weights() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    kept = Compiled(model)
    with pytest.warns(RegionWarning, match="freezing"):
        kept.run(x)
    assert kept.layers() == 3
    model.weight().mul_(2)
    torch.testing.assert_close(kept.run(x), model(x))


@torch.no_grad()
def test_a_graph_that_cannot_be_collapsed_is_compiled_as_it_was() -> None:
    model = net()
    model.weight()[0, 0, 0, 0] = torch.nan
    compiled = Compiled(model)
    with config.patch(freezing=True), pytest.warns(RegionWarning, match="goes on with the graph as it was"):
        compiled.run(torch.randn(2, 3, 8, 8))
    assert compiled.layers() == 3
