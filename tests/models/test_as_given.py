"""The caller's own model is what results are compared with, and it is afterwards as it was before."""

from __future__ import annotations

import functools
import random
import threading
import weakref
from collections import OrderedDict, deque
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.errors import UnsupportedModelError
from reptool.models.as_given import put_back, run_as_given
from reptool.models.copies import full_copy
from reptool.testing import randomize
from reptool.verify.whole_model import reference_of


class Settings:
    def __init__(self) -> None:
        self.calls, self.seen, self.nested = 0, [], {"sizes": set()}


class Slots:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Busy(nn.Module):
    """A forward that writes into everything that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("count", torch.zeros(2))
        self.plain, self.swapped = torch.zeros(1), nn.Parameter(torch.ones(2))
        self.settings, self.slots, self.calls = Settings(), Slots(), 0
        self.lists: Any = {"a": [1, (2, [3])], "o": OrderedDict(x=1)}
        self.array, self.recent = numpy.zeros(2), deque(maxlen=2)
        self.lock, self.tries = threading.Lock(), []

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            self.calls += 1
            self.new = x
            self.settings.calls += 1
            self.settings.seen.append(x.shape)
            self.settings.nested["sizes"].add(len(x))
            self.slots.count += 1
            self.lists["a"][1][1].append(self.calls)
            self.lists["o"]["y"] = self.calls
            self.array += 1
            self.recent.append(self.calls)
            self.count += 1
            self.plain[0] = 7
            self.swapped.data = torch.zeros(5)
            self.swapped.requires_grad_(False)
            self.conv.weight.data.add_(1)
            self.bn.train()
        return self.bn(self.conv(x)) + self.count.sum()


def state(model: Any) -> list[Any]:
    """All of it, as values."""
    own = {k: v for k, v in vars(model).items() if k not in ("lock", "slots", "settings") and not k.startswith("_")}
    tensors = [(n, t.tolist(), getattr(t, "requires_grad", None)) for n, t in model.named_parameters()]
    tensors += [(n, t.tolist(), None) for n, t in model.named_buffers()]
    return [repr(own), repr(vars(model.settings)), model.slots.count, tensors, [m.training for m in model.modules()]]


def test_a_model_that_writes_into_itself_is_left_as_it_was() -> None:
    model = randomize(Busy()).eval()
    before, held = state(model), [id(v) for v in (model.lists, model.settings.seen, model.count, model.swapped)]
    copies: dict[int, Any] = {}
    copied = full_copy(model, copies)
    x = torch.randn(2, 3, 6, 6)
    ran: list[nn.Module] = []

    def run(m: nn.Module) -> Any:
        ran.append(m)
        return m(x)

    found = run_as_given(model, copies, run)
    assert ran == [model]
    assert state(model) == before
    assert held == [id(v) for v in (model.lists, model.settings.seen, model.count, model.swapped)]
    assert torch.equal(copied(x), found)
    assert state(model) == before


def test_a_forward_that_raises_leaves_the_model_as_it_was_too() -> None:
    model = randomize(Busy()).eval()
    before, copies = state(model), {}
    full_copy(model, copies)
    with pytest.raises(RuntimeError):
        run_as_given(model, copies, lambda m: m(torch.randn(2, 5, 6, 6)))
    assert state(model) == before


class Rolls(nn.Module):
    """A generator of its own: nobody knows how to put that back."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dice = nn.Conv2d(3, 4, 3), random.Random(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.dice.random()


def test_where_something_cannot_be_put_back_a_copy_runs() -> None:
    model, x = Rolls().eval(), torch.randn(2, 3, 6, 6)
    before, copies = model.dice.getstate(), {}
    full_copy(model, copies)
    ran: list[nn.Module] = []
    run_as_given(model, copies, ran.append)
    assert ran[0] is not model
    reptool.explain(model, x)
    assert model.dice.getstate() == before


class Turned:
    """A value whose copy is another value."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __deepcopy__(self, memo: Any) -> Turned:
        return Turned(1.0)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.turned = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Turned(3.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.turned.factor


@pytest.mark.parametrize("inplace", [False, True])
def test_a_model_whose_copies_are_others_is_refused(inplace: bool) -> None:
    model, x = randomize(Scaled()).eval(), torch.randn(2, 3, 6, 6)
    own = model(x)
    with pytest.raises(UnsupportedModelError, match="a copy of the Scaled computes something else than the model"):
        reptool.deploy(model, x, inplace=inplace)
    assert torch.equal(model(x), own)


def test_the_reference_is_the_models_own_output_and_the_exact_one() -> None:
    model, x = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval(), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        found = reference_of(model, (x,), {}, True)
        assert torch.equal(found.own, model(x))
        assert torch.equal(found.exact, full_copy(model).double()(x.double()))
        assert reference_of(model, (x,), {}, False).exact is None


class Part(nn.Module):
    """A part that holds something."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.layer, self.held = nn.Conv2d(3, 4, 3), held


WHOLE = nn.Linear(2, 2)


def closure() -> Any:
    whole = nn.Linear(2, 2)
    return lambda: whole


OUTSIDE: dict[str, Any] = {
    "method": WHOLE.forward,
    "reference": weakref.ref(WHOLE),
    "partial": functools.partial(print, 3),
    "closure": closure(),
    "default": lambda whole=WHOLE: whole,
    "builtin": [].append,
    "lock": threading.Lock(),
}


@pytest.mark.parametrize("kind", list(OUTSIDE))
def test_a_part_that_leads_out_of_itself_is_not_put_back_alone(kind: str) -> None:
    part = Part(OUTSIDE[kind])
    assert put_back(part) is not None
    assert put_back(part, alone=True) is None


def test_a_part_is_put_back_alone() -> None:
    part = Part([torch.relu, F.relu, nn.ReLU, 3, {"a": (1, None)}])
    restore, layer = put_back(part, alone=True), part.layer
    assert restore is not None
    part.held.append(2)
    part.layer, part.more = nn.Conv2d(3, 4, 1), 1
    layer.stride, layer.weight.whole = (2, 2), part
    restore()
    assert (part.layer, part.layer.stride, len(part.held)) == (layer, (1, 1), 5)
    assert not hasattr(part, "more")
    assert put_back(part, alone=True) is None
