"""Deploying draws nothing from the generators of the program around it."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.models.running import users_code, young_garbage
from tests.traps import ConvBN, image, ready


def test_the_generators_are_set_back() -> None:
    with users_code():
        wanted = torch.rand(1), random.random(), numpy.random.rand()
    assert (torch.rand(1), random.random(), numpy.random.rand()) == wanted


def test_a_model_that_draws_moves_no_generator() -> None:
    class Draws(ConvBN):
        def forward(self, x: Any) -> Any:
            return self.bn(F.dropout(self.conv(x), 0.5))

    model = ready(Draws())
    state = torch.get_rng_state()
    reptool.deploy(model, image())
    assert torch.equal(torch.get_rng_state(), state)


class Branches(nn.Module):
    """Parallel branches in front of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.o((self.a(x) + self.b(x)).relu())


def in_threads(*calls: Callable[[], None]) -> list[BaseException]:
    """What the calls raise when each of them runs in a thread of its own."""
    failed: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_threads_that_deploy_and_threads_that_compute_get_what_they_get_alone() -> None:
    x, done = image(), threading.Event()
    other = ready(Branches())
    wanted = other(x)

    def serve() -> None:
        while not done.is_set():
            assert torch.equal(other(x), wanted)

    def deploys() -> None:
        for _ in range(8):
            model = ready(Branches())
            deployed = reptool.deploy(model, x)
            assert reptool.report(deployed).layers == (3, 2)
            torch.testing.assert_close(deployed(x), model(x))

    def both() -> None:
        failed = in_threads(deploys, deploys)
        done.set()
        assert not failed, failed

    failed = in_threads(serve, both)
    assert not failed, failed


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_default_device_of_the_program_is_no_matter(device: str) -> None:
    model, x = ready(Branches()), image()
    for example in (None, x):
        with torch.device(device):
            deployed = reptool.deploy(model, example)
            assert torch.ones(1).device.type == device
        assert reptool.report(deployed).layers == (3, 2)
        torch.testing.assert_close(deployed(x), model(x))


def test_the_thresholds_of_the_garbage_collector_are_set_back_whoever_leaves_last() -> None:
    before = gc.get_threshold()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with young_garbage():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with young_garbage():
        thread.start()
        inside.wait(10)
        assert gc.get_threshold() == (*before[:2], 2**31 - 1)
    assert gc.get_threshold() == (*before[:2], 2**31 - 1)
    leave.set()
    thread.join()
    assert gc.get_threshold() == before
    with pytest.raises(ValueError, match="inside"), young_garbage():
        raise ValueError("inside")
    assert gc.get_threshold() == before


def test_nothing_old_is_collected_while_a_model_is_deployed() -> None:
    seen: list[int] = []

    def collected(phase: str, info: dict[str, int]) -> None:
        if gc.get_threshold()[2] > 1:
            seen.append(info["generation"])

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(20, 2, 1)
    try:
        reptool.deploy(model)
        assert gc.get_threshold() == (20, 2, 1)
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(collected)
    assert seen.count(0) > 10
    assert not seen.count(2)
