"""Which version of a tensor each operation reads: random programs with views and writes, against running them."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reptool.ir.aliasing import Reads, mutated_argument, resolve, storage_of, writes_many
from reptool.ir.nodes import asking, tensor_kind

Make = Callable[[fx.Graph, fx.Node], fx.Node]
NEW: list[Make] = [
    lambda g, x: g.call_function(torch.add, (x, 1.5)),
    lambda g, x: g.call_method("clone", (x,)),
    lambda g, x: g.call_function(torch.neg, (x,)),
]
VIEWS: list[Make] = [
    lambda g, x: g.call_method("t", (x,)),
    lambda g, x: g.call_method("transpose", (x, 0, 1)),
    lambda g, x: g.call_method("narrow", (x, 0, 0, 1)),
    lambda g, x: g.call_method("to", (x, torch.float64)),
    lambda g, x: g.call_method("float", (x,)),
    lambda g, x: g.call_method("detach", (x,)),
    lambda g, x: g.call_method("contiguous", (x,)),
]
WRITES: list[Make] = [
    lambda g, x: g.call_method("add_", (x, 1.0)),
    lambda g, x: g.call_method("mul_", (x, 3.0)),
    lambda g, x: g.call_function(torch.relu_, (x,)),
    lambda g, x: g.call_function(torch.nn.functional.silu, (x,), {"inplace": True}),
    lambda g, x: g.call_method("fill_", (x, 7.0)),
]


def program(seed: int) -> fx.Graph:
    """A random program on one matrix; every value is read again at its end."""
    dice, graph = random.Random(seed), fx.Graph()
    first = graph.placeholder("x")
    first.meta.update(kind="tensor", const=False)
    known = [graph.call_method("clone", (first,))]
    for _ in range(dice.randint(4, 12)):
        make = dice.choice(dice.choice([NEW, VIEWS, WRITES, WRITES]))
        known.append(make(graph, dice.choice(known)))
    known += [graph.call_function(torch.abs, (value,)) for value in known]
    for node in graph.nodes:
        node.meta.setdefault("const", False)
        node.meta["kind"] = node.meta.get("kind") or tensor_kind(node)
    graph.output(tuple(known))
    return graph


def run(graph: fx.Graph) -> tuple[dict[fx.Node, Tensor], dict[tuple[fx.Node, fx.Node], Tensor]]:
    """What each node gave when it ran, and what each node read."""
    held: dict[fx.Node, Any] = {}
    gave: dict[fx.Node, Tensor] = {}
    read: dict[tuple[fx.Node, fx.Node], Tensor] = {}
    for node in graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            held[node] = torch.randn(4, 4, dtype=torch.float64)
        else:
            read.update({(node, n): held[n].clone() for n in node.all_input_nodes})
            args, kwargs = (fx.node.map_arg(a, held.__getitem__) for a in (node.args, node.kwargs))
            function: Any = getattr(torch.Tensor, node.target) if node.op == "call_method" else node.target
            held[node] = function(*args, **kwargs)
        gave[node] = held[node].clone()
    return gave, read


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_what_a_node_is_said_to_read_is_what_it_reads(first: int) -> None:
    for seed in range(first, first + 50):
        graph = program(seed)
        reads = resolve(graph)
        gave, read = run(graph)
        for (user, node), value in read.items():
            seen = reads.of(user, node)
            if seen is not None:
                told = f"seed {seed}: {graph}\n{user} reads {node} as {seen}"
                assert torch.equal(gave[seen].reshape(-1), value.reshape(-1)), told
                assert torch.equal(gave[seen], value), told


def test_most_reads_are_resolved() -> None:
    found = []
    for seed in range(100):
        graph = program(seed)
        reads = resolve(graph)
        found += [reads.of(u, n) for u in graph.nodes if u.op != "output" for n in u.all_input_nodes]
    assert len(found) > 1000
    assert sum(seen is None for seen in found) < 0.35 * len(found)


def resolved(build: Callable[[fx.Graph, fx.Node], fx.Node]) -> tuple[Reads, fx.Node, fx.Node, fx.Node]:
    """Of a program that reads its input before and after: the reads, the input, what writes, the second reader."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta.update(kind="tensor", const=False)
    graph.call_function(torch.abs, (x,))
    written = build(graph, x)
    after = graph.call_function(torch.abs, (x,))
    for node in graph.nodes:
        node.meta.setdefault("const", False)
        node.meta["kind"] = node.meta.get("kind") or tensor_kind(node)
    return resolve(graph), x, written, after


@pytest.mark.parametrize(
    "write",
    [
        lambda g, x: g.call_method("add_", (x, 1)),
        lambda g, x: g.call_function(torch.add, (x, 1), {"out": x}),
        lambda g, x: g.call_function(nn.functional.relu, (x,), {"inplace": True}),
        lambda g, x: g.call_function(torch.ops.aten.relu_.default, (x,)),
    ],
)
def test_a_write_is_seen_by_whoever_reads_afterwards(write: Callable[[fx.Graph, fx.Node], fx.Node]) -> None:
    reads, x, written, after = resolved(write)
    assert mutated_argument(written) is x
    assert reads.of(after, x) is written
    assert reads.written_between(x, 0, reads.position[after])
    assert not reads.written_between(x, reads.position[written] + 1, reads.position[after])
    assert reads.at(reads.position[written], x) is x
    assert reads.at(reads.position[after], x) is written


def test_a_write_into_a_part_leaves_the_whole_unknown() -> None:
    def part(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_method("zero_", (graph.call_method("narrow", (x, 0, 0, 1)),))

    reads, x, written, after = resolved(part)
    assert reads.of(after, x) is None
    assert written in reads.partial


def test_a_copy_is_not_written() -> None:
    def copied(graph: fx.Graph, x: fx.Node) -> fx.Node:
        return graph.call_method("zero_", (graph.call_method("clone", (x,)),))

    reads, x, _, after = resolved(copied)
    assert reads.of(after, x) is x
    assert not reads.mutation_order.get(x)


def test_a_module_writes_where_it_says_so() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for module, writes in ((nn.ReLU(inplace=True), True), (nn.ReLU(), False), (nn.Dropout(inplace=True).eval(), False)):
        node = graph.call_module("m", (x,))
        node.meta["module"] = module
        assert (mutated_argument(node) is x) == writes


def test_several_tensors_that_are_written_at_once_are_told() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    assert writes_many(graph.call_function(torch._foreach_add_, ([x, y], 1.0)))
    assert not writes_many(graph.call_function(torch._foreach_add, ([x, y], 1.0)))


def test_what_asks_is_known_at_any_depth() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 0))
    ones = graph.call_function(torch.ones, (graph.call_function(operator.add, (size, 1)),))
    value = x
    for _ in range(3000):
        value = graph.call_function(torch.relu, (value,))
    mixed = graph.call_function(torch.add, (value, ones))
    found = asking(graph.nodes)
    assert {size, ones} <= found
    assert not {x, value, mixed} & found


@pytest.mark.parametrize("seed", range(40))
def test_the_memory_of_one_value_is_found_without_the_others(seed: int) -> None:
    graph = program(seed)
    storage = resolve(graph).storage
    assert {storage_of(n) for n in graph.nodes} != set(graph.nodes)
    assert all(storage_of(n) is storage.get(n, n) for n in graph.nodes)
