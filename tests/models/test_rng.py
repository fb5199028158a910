"""Random numbers that this thread draws are told from those that others draw."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from random import random as drawn

import numpy
import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.models.rng import drew_itself
from tests.traps import image, ready

DRAWS: dict[str, Callable[[], object]] = {
    "random": drawn,
    "bits": lambda: random.getrandbits(8),
    "uniform": lambda: random.uniform(1, 2),
    "seed": lambda: random.seed(3),
    "torch": lambda: torch.rand(1),
    "in place": lambda: torch.empty(3).normal_(),
    "torch's seed": lambda: torch.manual_seed(3),
    "numpy": lambda: numpy.random.rand(),
}


@pytest.fixture
def others() -> Iterator[None]:
    """Another thread that draws from every generator now and then."""
    done = threading.Event()

    def draw() -> None:
        while not done.is_set():
            torch.rand(1), random.random(), numpy.random.rand()
            time.sleep(0.2)  # NumPy's one generator is told by runs that nobody draws in

    thread = threading.Thread(target=draw)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.parametrize("kind", list(DRAWS))
def test_what_this_thread_draws_is_seen(kind: str, others: None) -> None:
    assert drew_itself(DRAWS[kind])


def test_what_is_drawn_before_an_error_is_seen(others: None) -> None:
    def run() -> None:
        random.random()
        raise KeyError

    assert drew_itself(run)


def test_what_others_draw_is_not(others: None) -> None:
    assert not drew_itself(lambda: torch.ones(3).mul(2).sum().item())


def test_where_nobody_else_runs_it_was_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys._current_frames", lambda: {0: None})
    assert drew_itself(lambda: None)


class Drawing(nn.Module):
    """Parallel branches, one of which runs now and then."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.a, self.b, self.draw = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), draw

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        return y + self.b(x) if self.draw() < 2 else y


@pytest.mark.parametrize(
    ("draw", "draws"),
    [(drawn, True), (lambda: numpy.random.rand(), True), (lambda: 0.5, False)],
    ids=["random", "numpy", "nothing"],
)
def test_a_model_that_draws_is_left_whoever_else_draws(draw: Callable[[], float], draws: bool, others: None) -> None:
    model = ready(Drawing(draw))
    for _ in range(3):
        report = reptool.report(reptool.deploy(model, image()))
        assert report.layers == ((2, 2) if draws else (2, 1))
        assert list(report.untraced) == [""] * draws
