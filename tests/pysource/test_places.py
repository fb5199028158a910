"""Whatever a user reads names module paths and lines of code, and no node of a graph."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool import Code, Refusal
from reptool.api.accept import prepared
from reptool.api.pipeline.modules import make_plan
from reptool.api.reporting import report_of
from reptool.surgery.units import Plan
from tests.networks import random_network
from tests.sparse import sparse
from tests.test_refusals import CASES, conv, net


def here(offset: int, function: Callable[..., Any]) -> str:
    """``file:line`` of a line of a function of this file."""
    return f"tests/pysource/test_places.py:{function.__code__.co_firstlineno + offset}"


def found(model: nn.Module, x: Tensor | None = None, **options: Any) -> list[Refusal]:
    """What is left of a model."""
    return reptool.explain(model.eval(), x, **options).refusals


def quarters(self: Any, x: Tensor) -> Tensor:
    """Two branches that differ at odd sizes."""
    y = self.a(x)
    return y + F.avg_pool2d(x, 2)


def added(a: Tensor, b: Tensor) -> Tensor:
    """A helper outside of the model."""
    return a + b


def by_a_helper(self: Any, x: Tensor) -> Tensor:
    """The sum is another function's."""
    return added(self.a(x), F.avg_pool2d(x, 2))


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        return function(*args)

    return run


@pytest.mark.parametrize(
    ("forward", "line"),
    [
        (quarters, here(3, quarters)),
        (by_a_helper, here(2, by_a_helper)),
        (logged(quarters), here(3, quarters)),
    ],
    ids=["plain", "helper", "decorated"],
)
def test_an_operation_is_named_by_its_module_and_the_line_of_the_forward(
    forward: Callable[..., Any], line: str
) -> None:
    model = nn.Sequential(nn.ReLU(), net(forward, a=conv(4, 4, stride=2)))
    (refusal,) = [r for r in found(model) if r.code is Code.EXTENT]
    assert refusal.nodes == ("1: add",)
    assert refusal.lines == (line,)
    assert str(refusal).endswith(f"[1: add ({line})]")
    assert refusal.to_dict()["lines"] == [line]


def test_a_module_that_torch_calls_has_a_path_and_no_line() -> None:
    (refusal,) = found(nn.Sequential(conv(4, 16, 1), conv(16, 4)))
    assert (refusal.nodes, refusal.lines) == (("1",), ("",))
    assert "lines" not in refusal.to_dict()
    assert str(refusal).endswith("[1]")


def decides_by_data(self: Any, x: Tensor) -> Tensor:
    """Cannot be followed: its parts are captured by themselves."""
    return self.part(x) if float(x.sum()) > 0 else x


def asks_for_sizes(self: Any, x: Tensor) -> Tensor:
    """Another way for small images."""
    if x.shape[-1] > 3:
        return self.a(x) + self.b(x)
    return torch.tanh(x)


def test_paths_are_those_of_the_whole_model_also_below_code_that_cannot_be_followed() -> None:
    part = net(asks_for_sizes, a=conv(4, 4), b=conv(4, 4, 1))
    model = nn.Sequential(net(decides_by_data, part=part))
    x = torch.randn(1, 4, 8, 8)
    (refusal,) = [r for r in found(model, x) if r.code is Code.SPECIALIZED]
    assert refusal.nodes == ("0.part: add",)
    assert "0.part.forward asks for the truth of gt" in refusal.sentence
    assert here(2, asks_for_sizes) in refusal.sentence
    report = reptool.explain(model.eval(), x)
    assert report.specialized == [f"0.part.forward: the truth of gt ({here(2, asks_for_sizes)}) = True"]


def reads_between(self: Any, x: Tensor) -> Tensor:
    """The shape of what stands between two layers is read."""
    y = self.a(x)
    return self.b(y).reshape(y.shape[0], -1)  # type: ignore[no-any-return]


def test_a_shape_that_is_read_says_by_whom() -> None:
    inner = net(reads_between, a=conv(4, 64, 1, bias=False), b=conv(64, 4))
    (refusal,) = found(nn.Sequential(inner))
    assert refusal.sentence == f"0.forward ({here(3, reads_between)}) reads the shape of '0.a', which would go away"


def words(text: str) -> Iterator[str]:
    """The names in a text, a path as one."""
    return (m[0].strip(".") for m in re.finditer(r"[\w.]+", text))


def names_in(plan: Plan) -> set[str]:
    """Names of graph nodes that nobody but the graph knows."""
    out: set[str] = set()
    for unit in plan.units:
        top = unit.trace.top.module
        known = {part for path, _ in top.named_modules() for part in (path, *path.split("."))}
        known |= {part for path, _ in top.named_parameters() for part in (path, *path.split("."))}
        for node in unit.trace.graph.nodes:
            known |= {str(node.target), getattr(node.target, "__name__", ""), *map(str, node.args[1:2])}
        out |= {n.name for n in unit.trace.graph.nodes if re.search(r"_", n.name)} - known
    return out


def assert_no_graph_names(model: nn.Module, x: Any, **options: Any) -> int:
    """Read everything that is said about a model; how much was said."""
    given = [options.get(k) for k in ("include", "exclude", "affine")]
    force = options.get("force", False)
    model, args, kwargs, chosen = prepared(model, x, options.get("rules"), force, *given, False)
    plan = make_plan(model, args, kwargs, chosen, values=True)
    hidden, report = names_in(plan), report_of(model, plan, {})
    said = [*map(str, report.refusals), *report.specialized, *report.untraced.values(), *report.impulses.values()]
    for text in said:
        assert not hidden & set(words(text)), (text, hidden & set(words(text)))
        assert "Value(" not in text
    return len(report.refusals)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.code.value} {c.id}".strip())
def test_no_refusal_names_a_node_of_the_graph(case: Any) -> None:
    model, x = case.build().double(), case.inputs().double() if case.given else None
    if case.code is not Code.TRAINING_NORM:
        model.eval()
    assert assert_no_graph_names(model, x, **case.options)


@pytest.mark.parametrize("first", sparse(range(0, 60, 10)))
def test_no_refusal_of_random_networks_names_a_node_of_the_graph(first: int) -> None:
    count = 0
    for seed in range(first, first + 10):
        model, x = random_network(seed)
        count += assert_no_graph_names(model, x) + assert_no_graph_names(model, None)
    assert count
