"""Guards: which sizes an answer depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reptool.capture.tracer import Recorder
from reptool.frontends.inputs import placeholders
from reptool.rewrite.guard_inference import CannotGuardError, guard
from reptool.runtime.expect import fits


class Asks(nn.Module):
    """A forward that asks one thing of its input."""

    def __init__(self, question: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.question = nn.Conv2d(3, 4, 3, stride=2), question

    def forward(self, x: Tensor) -> Tensor:
        """Ask."""
        return x * 2 if self.question(self, x) else x


def guarded(question: Callable[..., Any], x: Tensor) -> Any:
    """The guard of a call with `x`."""
    recorder = Recorder(Asks(question).eval())
    top = recorder.run(placeholders((x,), "x"), {}).top
    return guard(top, top.questions, recorder).values[0]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("question", "fixed"),
    [
        (lambda m, x: x.shape[1] == 3, {1}),
        (lambda m, x: x.shape[-1] > 8, {3}),
        (lambda m, x: x.shape[2] % 2 == 0, {2}),
        (lambda m, x: x.shape[2] > x.shape[3], {2, 3}),
        (lambda m, x: m.conv(x).shape[2] > 3, {2}),
        (lambda m, x: x.shape[0] > 1, {0}),
        (lambda m, x: len(x) > 1, {0}),
        (lambda m, x: x.flatten(1).shape[1] > 100, {1, 2, 3}),
    ],
)
def test_only_sizes_that_an_answer_hangs_on_are_fixed(
    question: Callable[..., Any], fixed: set[int], batch: int
) -> None:
    found = guarded(question, torch.zeros(batch, 3, 16, 12))
    held = {a for a, n in enumerate(found.shape) if n >= 0}
    assert fixed - {0} <= held
    assert 0 not in fixed or found.shape[0] != -1  # more than one: every batch from two on
    assert 0 in held or found.shape[0] in (-1, -2)
    if 0 not in fixed and not fixed & {2, 3}:
        assert held == fixed
        assert found.shape[0] == -1


def test_a_guard_lets_pass_only_what_is_answered_alike() -> None:
    def question(m: Any, x: Tensor) -> Any:
        return m.conv(x).shape[2] % 3 == 1 and x.shape[0] != 7

    seen = torch.zeros(2, 3, 16, 12)
    found = guarded(question, seen)
    module = Asks(question)
    wanted = question(module, seen)
    for batch in (1, 2, 3, 7, 8):
        for height in range(4, 24):
            x = torch.zeros(batch, 3, height, 12)
            assert not fits(x, found) or question(module, x) == wanted
    assert fits(seen, found)


def test_a_dtype_is_fixed_where_it_is_asked_for() -> None:
    found = guarded(lambda m, x: x.dtype == torch.float32, torch.zeros(2, 3, 8, 8))
    assert found.dtype is torch.float32
    assert guarded(lambda m, x: x.shape[1] == 3, torch.zeros(2, 3, 8, 8)).dtype is None
    assert fits(torch.zeros(1, 3, 9, 9), found)
    assert not fits(torch.zeros(1, 3, 9, 9).double(), found)


def test_what_arguments_do_not_tell_cannot_be_guarded() -> None:
    with pytest.raises(CannotGuardError, match="requires_grad"):
        guarded(lambda m, x: x.requires_grad, torch.zeros(2, 3, 8, 8))
    with pytest.raises(CannotGuardError, match="mode"):
        guarded(lambda m, x: torch.is_grad_enabled(), torch.zeros(2, 3, 8, 8))
