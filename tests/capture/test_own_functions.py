"""Functions that a rule reads are one operation while a model is traced, and what they were everywhere else."""

from __future__ import annotations

import threading
from functools import partial

import torch
from torch import Tensor, nn

from reptool.capture.own_functions import intercepted
from reptool.capture.tracer import Recorder
from reptool.frontends.inputs import unknown_inputs

FACTOR = 2.0


def times(x: Tensor, factor: float = 3.0, *, plus: float = 1.0) -> Tensor:
    return x * factor + plus


def closed(offset: float):  # type: ignore[no-untyped-def]
    def moved(x: Tensor) -> Tensor:
        return x + offset

    return moved


moved = closed(5.0)


class Net(nn.Module):
    """Calls them by several names."""

    def __init__(self) -> None:
        super().__init__()
        self.call = partial(times, factor=4.0)

    def forward(self, x: Tensor) -> Tensor:
        """Two functions and a constant."""
        return moved(self.call(x)) + times(torch.ones(1))


def recorded(*functions: object) -> list[object]:
    recorder = Recorder(Net())
    recorder.own_functions = functions  # type: ignore[assignment]
    trace = recorder.run(*unknown_inputs(recorder.root))
    return [n.target for n in trace.graph.nodes if n.op == "call_function"]


def test_a_call_is_one_node_under_every_name() -> None:
    found = recorded(times, moved)
    assert found[:2] == [times, moved]
    assert times(torch.ones(1)).item() == 4.0
    assert moved(torch.ones(1)).item() == 6.0
    assert times.__kwdefaults__ == {"plus": 1.0}


def test_without_a_rule_they_are_followed() -> None:
    assert times not in recorded()
    assert times in recorded(times)


def test_other_threads_and_errors_find_what_it_was() -> None:
    recorder = Recorder(Net())
    recorder.own_functions = [times, moved]
    seen: list[float] = []
    try:
        with intercepted(recorder):
            recorder.active = True
            thread = threading.Thread(target=lambda: seen.append(times(torch.ones(1), 7.0, plus=0.5).item()))
            thread.start()
            thread.join()
            seen.append(moved(torch.ones(1)).item())
            raise KeyError
    except KeyError:
        pass
    assert seen == [7.5, 6.0]
    assert times.__code__.co_name == "times"
    assert moved.__code__.co_freevars == ("offset",)
