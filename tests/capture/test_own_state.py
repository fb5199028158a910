"""Forwards that may have state of their own are run twice, all others once."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reptool
from reptool.capture.own_state import holds_nothing
from reptool.capture.tracer import Recorder
from tests.traps import ConvBN, ready

COUNTS = {"calls": 0}
TURN = 0
NOTE = list[int]().append


def runs(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *given: Any) -> int:
    """How often the whole model is traced."""
    ran = [0]
    run = Recorder.run

    def counted(self: Recorder, args: Any, kwargs: Any, path: str = "", method: str = "forward") -> Any:
        ran[0] += path == "" and method == "forward"
        return run(self, args, kwargs, path, method)

    monkeypatch.setattr(Recorder, "run", counted)
    reptool.explain(model, *given)
    return ran[0]


def helper(x: Any, scale: float = 2.0) -> Any:
    return F.relu(x) * scale


def counting(x: Any) -> Any:
    counting.calls = getattr(counting, "calls", 0) + 1  # type: ignore[attr-defined]
    return x


def keeping(x: Any, seen: list[int] = []) -> Any:  # noqa: B006 - state is what is tried
    seen.append(1)
    return x


def closed() -> Callable[[Any], Any]:
    count = 0

    def run(x: Any) -> Any:
        nonlocal count
        count += 1
        return x

    return run


COUNTED = closed()


def globally(x: Any) -> Any:
    global TURN
    TURN += 1
    return x


def in_dictionary(x: Any) -> Any:
    COUNTS["calls"] += 1
    return x


@functools.lru_cache
def table(n: int) -> int:
    return n


class Block(ConvBN):
    """A convolution and its norm, and something else."""

    limit = 3
    log: list[int] = []  # noqa: RUF012 - state is what is tried

    def __init__(self) -> None:
        super().__init__()
        self.size, self.act, self.names = (2, 3), nn.ReLU(), [1]
        self.turns = collections.deque([0, 1])
        self.register_buffer("step", torch.zeros(()))
        self.plain = torch.zeros(())

    def scaled(self, x: Any) -> Any:
        return x * self.size[0]

    @property
    def half(self) -> float:
        return 0.5

    @property
    def counted(self) -> int:
        self.seen = getattr(self, "seen", 0) + 1
        return self.seen

    def __getitem__(self, index: int) -> int:
        return self.size[index]

    def forward(self, x: Any) -> Any:
        return super().forward(x)


class Turning(Block):
    """Indexing it is not without consequences."""

    def __getitem__(self, index: int) -> int:
        COUNTS["calls"] += 1
        return index


def made(then: Callable[[Any, Any], Any], base: type[Block] = Block) -> nn.Module:
    """A block whose forward ends in a function of itself and its value."""
    given: Any = then

    class Made(base):  # type: ignore[misc, valid-type]
        def forward(self, x: Any) -> Any:
            return given(self, super().forward(x))

    return ready(Made())


PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "nothing": lambda self, x: x,
    "parts and methods": lambda self, x: self.act(self.scaled(x)),
    "functions": lambda self, x: helper(x) + helper(x, scale=self.half),
    "settings": lambda self, x: x * self.limit if self.training else torch.cat([x for _ in range(self.size[1])], 1),
    "local containers": lambda self, x: torch.stack(list({"a": x, "b": x}.values())).sum(0),
    "a name that is constant": lambda self, x: getattr(self, "act", None)(x),
    "an operator of its own": lambda self, x: x * self[0],
    "a weight": lambda self, x: x * self.conv.weight.sum(),
}
STATE: dict[str, Callable[[Any, Any], Any]] = {
    "an attribute": lambda self, x: setattr(self, "turn", 1) or x,
    "a property": lambda self, x: x * min(self.counted, 1),
    "a list": lambda self, x: x * len(self.names),
    "a deque": lambda self, x: x * self.turns[0],
    "a tensor": lambda self, x: x + self.plain,
    "a buffer that is written": lambda self, x: x + self.step.add_(1),
    "its dictionary": lambda self, x: self.__dict__.update(turn=1) or x,
    "a function's attribute": lambda self, x: counting(x),
    "a default": lambda self, x: keeping(x),
    "a closure": lambda self, x: COUNTED(x),
    "a global": lambda self, x: globally(x),
    "a container of the module": lambda self, x: in_dictionary(x),
    "a cache": lambda self, x: x * table(3),
    "what its class holds": lambda self, x: type(self).log.append(1) or x,
    "what its class is asked for": lambda self, x: self.__class__.log.append(1) or x,
    "a method of a list": lambda self, x: NOTE(1) or x,
    "a class": lambda self, x: x * len(vars(Block)),
    "a name that is computed": lambda self, x: getattr(self, "co" + "unted"[:7])  and x,
    "a setting of the process": lambda self, x: torch.set_num_threads(torch.get_num_threads()) or x,
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("given", [False, True])
def test_plain_code_is_run_once(name: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (torch.randn(1, 3, 8, 8, dtype=torch.float64),) if given else ()
    assert runs(made(PLAIN[name]), monkeypatch, *inputs) == 1


@pytest.mark.parametrize("name", STATE)
def test_code_that_may_keep_something_is_run_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs(made(STATE[name]), monkeypatch, torch.randn(1, 3, 8, 8, dtype=torch.float64)) == 2


def test_operators_of_classes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs(made(PLAIN["an operator of its own"], Turning), monkeypatch) == 2


def test_hooks_decorators_and_inputs_that_can_change_are_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = made(PLAIN["nothing"])
    hooked.conv.register_forward_hook(lambda module, args, out: out)  # type: ignore[union-attr, operator]
    assert runs(hooked, monkeypatch) == 2

    class Decorated(Block):
        @functools.wraps(Block.forward)
        def forward(self, x: Any) -> Any:
            return Block.forward(self, x)

    assert runs(ready(Decorated()), monkeypatch) == 2

    class Given(Block):
        def forward(self, x: Any, held: Any = None) -> Any:
            return super().forward(x)

    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    assert runs(ready(Given()), monkeypatch, {"x": x, "held": [1]}) == 1
    assert runs(ready(Given()), monkeypatch, {"x": x, "held": collections.deque()}) == 2


@pytest.mark.parametrize(("value", "nothing"), [
    (1, True), ("a", True), (None, True), ((1, (2.0,)), True), (torch.float32, True), (torch.relu, True),
    (nn.ReLU, True), ([1], False), ({}, False), ((1, [2]), False), (torch.zeros(1), False), (helper, False),
    (Block, False), (iter(()), False),
])  # fmt: skip
def test_what_nothing_can_change(value: Any, nothing: bool) -> None:
    assert holds_nothing(value) == nothing
