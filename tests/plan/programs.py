"""Random programs of layers, norms, poolings, sums, concatenations and views, and what the planner makes of them."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.capture.tracer import Recorder
from reptool.ir.aliasing import resolve
from reptool.ir.trace import Input, Trace, fake
from reptool.plan.candidates import Analysis, analyse
from reptool.plan.inference.facts import Facts
from reptool.testing import randomize

C = 4


class Program(nn.Module):
    """A random program on images of four channels, whose last values are its outputs."""

    def __init__(self, seed: int, steps: int, branches: bool = True) -> None:
        super().__init__()
        self.dice, self.layers = random.Random(seed), nn.ModuleList()
        self.steps = [self._step(i + 1, branches) for i in range(steps)]

    def _layer(self, layer: nn.Module) -> int:
        self.layers.append(layer)
        return len(self.layers) - 1

    def _step(self, held: int, branches: bool) -> tuple[Any, ...]:
        kinds = ["conv", "point", "depth", "norm", "pool", "relu", "scale", "crop"]
        kind = self.dice.choice(kinds + ["add", "add", "cat", "view"] * branches)
        a, b = self.dice.randrange(held), self.dice.randrange(held)
        size = self.dice.choice([1, 3])
        made = {
            "conv": lambda: nn.Conv2d(C, C, size, padding=size // 2, bias=self.dice.random() < 0.5),
            "point": lambda: nn.Conv2d(C, C, 1),
            "depth": lambda: nn.Conv2d(C, C, 3, padding=1, groups=C),
            "norm": lambda: nn.BatchNorm2d(C),
            "pool": lambda: nn.AvgPool2d(3, 1, 1),
            "cat": lambda: nn.Conv2d(2 * C, C, 1),
            "scale": lambda: nn.Conv2d(C, C, 1, groups=C, bias=False),
        }.get(kind)
        return kind, a, b, None if made is None else self._layer(made())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Run the steps."""
        values = [x]
        for kind, a, b, layer in self.steps:
            values.append(self._run(kind, values[a], values[b], layer))
        return tuple(values[-2:])

    def _run(self, kind: str, a: Tensor, b: Tensor, layer: int | None) -> Tensor:
        if kind == "cat":
            return self.layers[layer](torch.cat([a, b], 1))  # type: ignore[index,no-any-return]
        if layer is not None:
            return self.layers[layer](a)  # type: ignore[no-any-return]
        if kind == "add":
            return a + b
        if kind == "view":
            return a.transpose(2, 3).flip(-1).transpose(2, 3)
        if kind == "crop":
            return nn.functional.pad(a[..., 1:, :], (0, 0, 1, 0))
        return torch.relu(a)


def program(seed: int, steps: int = 8, branches: bool = True) -> Program:
    """A random program in float64, in eval mode."""
    torch.manual_seed(seed)
    return randomize(Program(seed, steps, branches).eval()).double()


def traced(model: nn.Module, *given: Tensor) -> tuple[Trace, Analysis]:
    """The trace of a model, and what the planner sees of it."""
    recorder = Recorder(model)
    trace = recorder.run(tuple(Input(f"x{i}", partial(fake, t)) for i, t in enumerate(given)), {})
    reads = resolve(trace.graph)
    return trace, analyse(trace.graph, reads, Facts(recorder, reads, {}), {}, trace.escaped, True)


def analysed(model: nn.Module, *given: Tensor) -> Analysis:
    """What the planner sees of a model."""
    return traced(model, *given)[1]


def values_of(found: Analysis, *given: Tensor) -> dict[fx.Node, Any]:
    """What every node of a graph computes."""
    held: dict[fx.Node, Any] = {}
    inputs = iter(given)
    for node in found.graph.nodes:
        args, kwargs = (fx.node.map_arg(a, held.get) for a in (node.args, node.kwargs))
        if node.op == "placeholder":
            held[node] = next(inputs)
        elif node.op == "get_attr":
            held[node] = node.meta["tensor"].detach()
        elif node.op == "call_module":
            held[node] = node.meta["module"](*args, **kwargs)
        elif node.op == "call_method":
            held[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        elif node.op == "call_function":
            held[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return held
