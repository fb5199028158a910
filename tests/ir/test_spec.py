"""What a phase hands on: each rule, broken once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from reptool.algebra.kernel import Axis, Channels, Kernel
from reptool.capture.tracer import Recorder
from reptool.ir.ops import Affine, Op, Sum
from reptool.ir.spec import SpecError, check_ops, check_trace
from reptool.ir.trace import Event, Input, Question, Setting, Trace


class Inner(nn.Module):
    """A scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the input by twice the parameter."""
        return x * (self.scale * 2)


class Net(nn.Module):
    """A layer, a call of a module, a size that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.norm = nn.Conv2d(3, 4, 1), Inner(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """Go through all of it."""
        y = self.inner(self.conv(x))
        return self.norm(y) + y if x.shape[0] else y


def traced() -> Trace:
    """A trace of it; building it checks it."""
    image = torch.randn(1, 3, 5, 5)
    return Recorder(Net().eval()).run((Input("x", lambda mode: mode.from_tensor(image)),), {})


def node(trace: Trace, op: str) -> fx.Node:
    return next(n for n in trace.graph.nodes if n.op == op)


def inner(trace: Trace) -> Event:
    return next(i for i in trace.top.items if isinstance(i, Event))


def no_kind(trace: Trace) -> None:
    del node(trace, "call_module").meta["kind"]


def other_kind(trace: Trace) -> None:
    node(trace, "call_module").meta["kind"] = "matrix"


def other_key(trace: Trace) -> None:
    node(trace, "call_module").meta["color"] = "red"


def other_type(trace: Trace) -> None:
    node(trace, "call_module").meta["hooked"] = "no"


def no_call(trace: Trace) -> None:
    node(trace, "placeholder").meta["event"] = None


def made_constant(trace: Trace) -> None:
    node(trace, "call_module").meta["const"] = True


def other_module(trace: Trace) -> None:
    node(trace, "call_module").meta["module"] = nn.Conv2d(3, 4, 1)


def other_tensor(trace: Trace) -> None:
    node(trace, "get_attr").meta["tensor"] = torch.ones(4, 1, 1)


def other_place(trace: Trace) -> None:
    node(trace, "call_module").meta["where"] = ("here", 1)


def other_parent(trace: Trace) -> None:
    inner(trace).parent = inner(trace)


def enclosed(trace: Trace) -> None:
    trace.top.parent = inner(trace)


def twice(trace: Trace) -> None:
    inner(trace).items.append(inner(trace).items[0])


def erased(trace: Trace) -> None:
    made = fx.Graph().placeholder("gone")
    trace.top.items.append(made)


def elsewhere(trace: Trace) -> None:
    item = next(i for i in trace.top.items if isinstance(i, fx.Node))
    item.meta["event"] = inner(trace)


def disordered(trace: Trace) -> None:
    trace.top.items.reverse()


def asked_of_nothing(trace: Trace) -> None:
    trace.top.questions.append(Question("truth", "y", True, fx.Graph().placeholder("y")))


def read_nowhere(trace: Trace) -> None:
    trace.top.settings.append(Setting("nowhere", "flag", True, 0))


def given_out(trace: Trace) -> None:
    trace.escaped.add(fx.Graph().placeholder("lost"))


BROKEN: dict[Callable[[Trace], None], str] = {
    no_kind: "conv has no 'kind'",
    other_kind: "conv is of the unknown kind 'matrix'",
    other_key: "conv has an annotation 'color' that is none",
    other_type: "conv has 'hooked' of type str",
    no_call: "x is in no call",
    made_constant: "conv is a constant and reads a value",
    other_module: "conv calls another module than the one at 'conv'",
    other_tensor: "inner_scale reads another tensor than the one at 'inner.scale'",
    other_place: "conv was called from no place in code",
    other_parent: "Event(inner.forward) is in Event(<root>.forward) and names another caller",
    enclosed: "Event(<root>.forward) is not the outermost call",
    twice: "mul is in Event(inner.forward) and in Event(inner.forward)",
    erased: "gone is in Event(<root>.forward) and not in the graph",
    elsewhere: "conv is in Event(<root>.forward) and names another call",
    disordered: "runs in another order than it stands in the graph",
    asked_of_nothing: "Event(<root>.forward) asks for the truth of 'y', which is no node",
    read_nowhere: "Event(<root>.forward) reads nowhere.flag, and there is no module at 'nowhere'",
    given_out: "lost is given out and not in the graph",
}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda f: f.__name__)
def test_a_trace_that_breaks_a_rule_is_an_error(breaks: Callable[[Trace], None]) -> None:
    trace = traced()
    assert check_trace(trace) is trace
    breaks(trace)
    with pytest.raises(SpecError, match=re.escape(BROKEN[breaks])):
        check_trace(trace)


def test_nothing_is_checked_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced()
    no_kind(trace)
    for value in ("", "0"):
        monkeypatch.setenv("REPTOOL_CHECK", value)
        assert check_trace(trace) is trace
    monkeypatch.setenv("REPTOOL_CHECK", "1")
    with pytest.raises(SpecError, match="after the phase 'captured'"):
        check_trace(trace)


SHAPE = Kernel(Channels.grouped(4, 4, 4), (Axis(1), Axis(1)))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (lambda a, b: Affine(b, SHAPE, lambda: SHAPE), "a reads b, which comes later"),
        (lambda a, b: Sum([], [None]), "a is a sum of 0 values with 1 maps"),
        (lambda a, b: Affine(a.prev, replace(SHAPE, weight=torch.ones(4, 1, 1, 1)), lambda: SHAPE), "a holds weights"),
    ],
)
def test_an_operation_that_breaks_a_rule_is_an_error(op: Callable[[fx.Node, fx.Node], Op], message: str) -> None:
    graph = fx.Graph()
    graph.placeholder("x")
    a, b = graph.placeholder("a"), graph.placeholder("b")
    check_ops(graph, {b: Affine(a, SHAPE, lambda: SHAPE), a: Sum([], [])})
    with pytest.raises(SpecError, match=message):
        check_ops(graph, {a: op(a, b)})
