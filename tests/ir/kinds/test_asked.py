"""Questions that the kinds of values answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reptool.capture.tracer import Recorder
from reptool.frontends.inputs import placeholders
from reptool.ir.kinds.asked import asks_kinds, kinds_read
from reptool.ir.kinds.asked import follows as follows_model


class Asks(nn.Module):
    def __init__(self, question: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.question = nn.Conv2d(3, 4, 3), question

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.question(self, x) else x


def questions(question: Callable[..., Any]) -> tuple[list[Any], Any]:
    recorder = Recorder(Asks(question).eval())
    top = recorder.run(placeholders((torch.zeros(2, 3, 8, 8),), "x"), {}).top
    return top.questions, recorder


@pytest.mark.parametrize(
    ("question", "alone", "follows"),
    [
        (lambda m, x: x.dtype == torch.float32, True, False),
        (lambda m, x: x.dtype != m.conv.weight.dtype, True, True),
        (lambda m, x: m.conv(x).dtype == m.conv.bias.dtype, True, True),
        (lambda m, x: x.is_floating_point(), True, True),
        (lambda m, x: x.is_complex(), True, True),
        (lambda m, x: x.shape[1] == 3, False, None),
        (lambda m, x: x.dim() == 4, True, True),
        (lambda m, x: x.ndim + 1 > 4, True, True),
        (lambda m, x: len(x.shape) == 4, True, None),
        (lambda m, x: x.device.type == "cpu", True, True),
        (lambda m, x: x.sum() > 0 if False else x.numel() > 3, False, None),
        (lambda m, x: len(x) == 2, False, None),
    ],
)
def test_questions_that_kinds_alone_answer(question: Callable[..., Any], alone: bool, follows: bool | None) -> None:
    found, recorder = questions(question)
    assert [asks_kinds(q) for q in found] == [alone]
    if alone:
        (asked,) = found
        assert kinds_read(asked)
        if follows is None:
            return
        assert follows_model(asked, torch.float32, recorder.evaluate, recorder.known.run) is follows
