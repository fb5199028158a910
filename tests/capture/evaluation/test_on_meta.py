"""Operations without data and without a mode against torch's fake tensor mode."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reptool.capture.evaluation.on_meta import without_mode
from reptool.ir.walk import map_tensors

MODE = FakeTensorMode(allow_non_fake_inputs=True)


def asked(target: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """What is found without the mode, and what the mode says; real tensors become fakes unless they are parameters."""
    graph = fx.Graph()
    op = (
        "call_module"
        if isinstance(target, nn.Module)
        else "call_method"
        if isinstance(target, str)
        else "call_function"
    )
    node = graph.create_node(op, "m" if isinstance(target, nn.Module) else target, (), {})
    node.meta["module"] = target if isinstance(target, nn.Module) else None
    args, kwargs = map_tensors((args, kwargs), faked)

    def run(a: Any, k: Any) -> Any:
        return getattr(a[0], target)(*a[1:], **k) if isinstance(target, str) else target(*a, **k)

    with torch.no_grad():
        found = without_mode(node, args, kwargs, run, MODE)
        with MODE:
            return found, run(args, kwargs)


def faked(value: Any) -> Any:
    """A fake of a tensor that is no parameter."""
    return MODE.from_tensor(value) if type(value) is Tensor else value


def described(value: Any) -> Any:
    """All that may be asked of fakes."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.stride(), value.device, value.requires_grad, type(value)
    return [described(v) for v in value]


x = torch.randn(2, 8, 6, 7)
WEIGHT = nn.Parameter(torch.randn(4, 8, 3, 3))
SAME: list[tuple[Any, ...]] = [
    (nn.Conv2d(8, 4, 3, stride=2, padding=1), x),
    (nn.Conv2d(8, 4, 3, padding="same", padding_mode="reflect"), x),
    (nn.Conv1d(8, 4, 2), x[..., 0].contiguous()),
    (nn.ConvTranspose2d(8, 3, 3, stride=2, output_padding=1), x),
    (nn.Linear(7, 3), x),
    (nn.MaxPool2d(3, 2, ceil_mode=True), x),
    (nn.AdaptiveAvgPool2d((1, None)), x),
    (nn.BatchNorm2d(8).eval(), x),
    (nn.BatchNorm2d(8).double().eval(), x.double()),
    (nn.LayerNorm(7), x),
    (nn.GroupNorm(2, 8), x),
    (nn.GELU(), x),
    (nn.ReLU(inplace=True), x),
    (nn.Softmax(0), x),
    (nn.Flatten(), x),
    (nn.Upsample(scale_factor=2), x),
    (nn.PixelShuffle(2), x),
    (F.conv2d, x, WEIGHT, None, 2),
    (F.batch_norm, x, nn.Parameter(torch.zeros(8)), nn.Parameter(torch.ones(8))),
    (F.relu, x),
    (torch.cat, [x, x], 1),
    (torch.add, x, 2),
    (operator.add, x, nn.Parameter(torch.ones(8, 1, 1))),
    (operator.mul, x, nn.Parameter(torch.tensor(2.0, dtype=torch.float64))),
    (operator.mul, x, nn.Parameter(torch.ones(1, dtype=torch.float64))),
    (operator.truediv, torch.ones(2, 3, dtype=torch.int64), 2),
    ("chunk", x, 2, 1),
    ("permute", x, 0, 2, 3, 1),
    ("reshape", x, 2, -1),
    ("float", x.double()),
    ("mean", x, (2, 3)),
    ("mean", x, 0, True),
    (operator.getitem, x, (slice(None), slice(1, 5, 2))),
    (torch.einsum, "bchw,oc->bohw", x, nn.Parameter(torch.ones(3, 8))),
    (F.interpolate, x, (12, 14)),
    (F.pad, x, (1, 2, 3, 4)),
    (torch.argmax, x, 1),
    (operator.eq, x, x),
]  # fmt: skip


def name_of(what: Any) -> str:
    """What is called, in words that are the same in every process."""
    return type(what).__name__ if isinstance(what, nn.Module) else str(getattr(what, "__name__", what))


@pytest.mark.parametrize("call", SAME, ids=[name_of(c[0]) for c in SAME])
def test_the_mode_would_say_the_same(call: tuple[Any, ...]) -> None:
    found, wanted = asked(*call)
    assert found is not NotImplemented
    assert described(found) == described(wanted)


class Asking(nn.Conv2d):
    """A convolution whose code asks for the device."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight, bias) if input.device.type == "cpu" else input


def own(value: Tensor) -> Tensor:
    """Code that is not torch's."""
    return value if value.device.type == "cpu" else value[0]


HOOKED = nn.Conv2d(8, 4, 1)
HOOKED.register_forward_hook(lambda module, args, out: out[0])
ASKED: list[tuple[Any, ...]] = [
    (getattr, x, "device"),
    (getattr, x, "shape"),
    ("size", x),
    ("t_", torch.randn(2, 3)),
    ("squeeze_", torch.randn(2, 1)),
    ("to", x, torch.device("meta")),
    (torch.zeros, 3),
    (own, x),
    (Asking(8, 4, 1), x),
    (HOOKED, x),
    (F.relu, x.contiguous(memory_format=torch.channels_last)),
    (F.conv2d, x.transpose(2, 3), WEIGHT),
]  # fmt: skip


@pytest.mark.parametrize("call", ASKED, ids=[name_of(c[0]) for c in ASKED])
def test_what_the_meta_device_may_answer_otherwise_is_asked_of_the_mode(call: tuple[Any, ...]) -> None:
    assert asked(*call)[0] is NotImplemented


def test_an_operation_that_is_told_a_device_is_asked_of_the_mode() -> None:
    graph = fx.Graph()
    node = graph.create_node("call_function", torch.zeros_like, (), {})
    told = {"device": torch.device("cpu")}
    assert without_mode(node, (faked(x),), told, lambda a, k: torch.zeros_like(*a, **k), MODE) is NotImplemented
    assert without_mode(node, (faked(x),), {}, lambda a, k: torch.zeros_like(*a, **k), MODE) is not NotImplemented


def test_what_does_not_run_is_asked_of_the_mode() -> None:
    graph = fx.Graph()
    norm = nn.BatchNorm2d(5).eval()
    node = graph.create_node("call_module", "m", (), {})
    node.meta["module"] = norm
    assert without_mode(node, (faked(x),), {}, lambda a, k: norm(*a), MODE) is NotImplemented


def test_autocast_is_asked_of_the_mode() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = asked(nn.Linear(7, 3), x)
    assert found is NotImplemented
    assert wanted.dtype == torch.bfloat16
