"""Graphs as source: every form gives what the graph gives, and tensors are freed when they are last read."""

from __future__ import annotations

import operator
import weakref
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reptool.rewrite.constants import CannotCutError, Constants
from reptool.rewrite.printer import Printer, path_text, read_item
from reptool.runtime.containers import Place, filled, read_key, template_of
from reptool.runtime.method import find

Pair = namedtuple("Pair", "a b")


def compiled(graph: fx.Graph, *parameters: str) -> tuple[Any, list[str]]:
    """The function that the printed source defines."""
    constants = Constants([*parameters, "self", *(n.name for n in graph.nodes)])
    lines = Printer(graph, parameters, constants).body()
    scope = {n: find(m, q) for n, m, q in constants.names} | dict(constants.values)
    scope |= {"_filled": filled, "_read_key": read_key}
    exec("\n".join([f"def run({', '.join(['self', *parameters])}):", *lines]), scope)
    return scope["run"], lines


X = torch.arange(12.0).reshape(3, 4) - 5
FORMS: dict[str, Any] = {
    "operators": lambda x: (x + 1) * -2 - (-3) ** (x - x) / 2 // 1 % 3,
    "negation": lambda x: -(~(-x > 0)).float(),
    "comparison": lambda x: (x <= 0) & (x != -1) | (x == 2) ^ (x > 3),
    "matmul": lambda x: x @ x.t(),
    "subscripts": lambda x: x[0] + x[1:, None, ..., ::2].sum() + x[:, 1][None][0][0] + x[()].mean() + x[[0], :1],
    "methods": lambda x: x.clamp(min=0, max=2.5).sum(dim=(0,), keepdim=True),
    "functions": lambda x: torch.nn.functional.pad(torch.relu(x), [1, 1], value=0.5),
    "attributes": lambda x: x.reshape(x.shape[0] * x.shape[1]).to(x.dtype),
    "containers": lambda x: [x, (x,), {"a": x, 'b"': (x, [x])}, Pair(x, 1)],
    "dtype": lambda x: x.to(torch.float64, memory_format=torch.contiguous_format),
    "infinity": lambda x: x.clamp(min=-float("inf")).masked_fill(x > 0, float("inf")),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_printed_gives_what_the_graph_gives(name: str) -> None:
    graph = fx.Tracer().trace(FORMS[name])
    run, lines = compiled(graph, "x")
    wanted, given = FORMS[name](X), run(None, X)
    torch.testing.assert_close(given, wanted, rtol=0, atol=0, check_dtype=True)
    assert not any("; " in line for line in lines)


def test_writes_are_written() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    copy = graph.call_method("clone", (x,))
    graph.call_function(operator.setitem, (copy, (slice(None), 0), 7.0))
    more = graph.call_function(operator.iadd, (copy, 1))
    graph.output((copy, more))
    run, _ = compiled(graph, "x")
    first, second = run(None, X)
    wanted = X.clone()
    wanted[:, 0] = 7
    assert first is second
    assert torch.equal(first, wanted + 1)


def test_modules_and_structures() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 2)])
            self.add_module("class", nn.ReLU())
            self.add_module('say "hi"\n', nn.Tanh())
            self.scale = nn.Parameter(torch.full((2,), 3.0))

    net, graph = Net(), fx.Graph()
    x = graph.placeholder("x")
    held = graph.call_function(filled, (template_of({"k": Place(0)}), x))
    y = graph.create_node("call_module", "layers.0", (graph.call_function(read_key, (held, "k")),))
    y = graph.create_node("call_module", "class", (y,))
    y = graph.create_node("call_module", 'say "hi"\n', (y,))
    graph.output(graph.call_function(operator.mul, (y, graph.get_attr("scale"))))
    run, _ = compiled(graph, "x")
    wanted = torch.tanh(torch.relu(net.layers[0](X))) * 3
    assert torch.equal(run(net, X), wanted)


def test_names_of_parameters_stay_their_own() -> None:
    graph = fx.Graph()
    first, second = graph.placeholder("torch"), graph.placeholder("relu")
    y = graph.call_function(torch.relu, (first,))
    z = graph.call_function(torch.relu, (second,))
    graph.output(graph.call_function(operator.sub, (y, z)))
    run, _ = compiled(graph, "torch", "relu")
    assert torch.equal(run(None, X, -X), torch.relu(X) - torch.relu(-X))


def test_a_tensor_is_freed_when_it_is_read_for_the_last_time() -> None:
    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(3):
        value = graph.call_function(_watched, (value,))
        value.meta["kind"] = "tensor"
    graph.output(value)
    run, lines = compiled(graph, "x")
    ALIVE.clear()
    run(None, X)
    assert MOST[0] <= 2
    assert len({line.split(" = ")[0] for line in lines[:-1]}) == 1


ALIVE: list[Any] = []
MOST = [0]


def _watched(x: Tensor) -> Tensor:
    made = x + 1
    ALIVE.append(weakref.ref(made))
    MOST[0] = max(MOST[0], sum(ref() is not None for ref in ALIVE))
    return made


def test_a_value_that_is_read_again_keeps_its_name() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.relu, (x,))
    y.meta["kind"] = "tensor"
    z = graph.call_function(torch.tanh, (y,))
    z.meta["kind"] = "tensor"
    graph.output(graph.call_function(operator.add, (y, z)))
    run, _ = compiled(graph, "x")
    assert torch.equal(run(None, X), torch.relu(X) + torch.tanh(torch.relu(X)))


def test_what_has_no_text_is_refused() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(lambda v: v, (x,)))
    with pytest.raises(CannotCutError, match="cannot be imported again"):
        compiled(graph, "x")


def test_paths() -> None:
    assert path_text("") == "self"
    assert path_text("a.b") == "self.a.b"
    assert path_text("a.0.class") == "getattr(getattr(self.a, '0'), 'class')"


def test_an_item_is_a_subscript() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(read_item, (x, 1)))
    _, lines = compiled(graph, "x")
    assert lines == ["    read_item = x[1]", "    return read_item"]
