"""The number of axes is a fact: a value without a batch gives what the original gives, or raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.errors import SpecializedError
from reptool.runtime.hooks import guarded_rank
from tests.traps import assert_same, ready

Forward = Callable[[Any, Tensor], Tensor]


class Free(nn.BatchNorm2d):
    """A norm that takes any number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class Model(nn.Module):
    """Layers of 8 channels, for images of 8 x 8, so that no axis tells another by its size."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.own = forward
        self.a, self.b, self.w = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 3)
        self.norm, self.free = nn.BatchNorm2d(8), Free(8)
        self.v = nn.Parameter(torch.rand(8))
        self.kernel = nn.Parameter(torch.rand(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self, x)


def image(*lead: int) -> Tensor:
    return torch.randn(*lead, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


OTHERS: dict[str, Forward] = {
    "a crop": lambda m, x: m.a(x)[:, :, 1:-1] + m.b(x)[:, :, 1:-1],
    "a crop of two axes": lambda m, x: m.norm(m.a(x))[:, :, 1:-1, 1:-1],
    "channels": lambda m, x: m.a(x)[:, 2:],
    "channels in another order": lambda m, x: m.a(x).flip(1),
    "rolled channels": lambda m, x: m.a(x).roll(1, 1),
    "repeated channels": lambda m, x: m.w(m.a(x).repeat(1, 2, 1, 1)),
    "listed channels": lambda m, x: m.a(x)[:, [3, 1, 2, 0, 7, 6, 5, 4]],
    "pieces": lambda m, x: torch.cat([m.a(v) for v in (x, x)], 1).chunk(2, 1)[0] * 2.0,
    "a concatenation": lambda m, x: torch.cat([m.a(x), m.b(x)], 1),
    "a norm of any rank": lambda m, x: m.free(m.a(x)),
    "a norm of any rank in front": lambda m, x: m.b(m.free(x)),
    "a scale of more axes": lambda m, x: m.a(x) * m.v.view(1, -1, 1, 1),
    "a shift of more axes": lambda m, x: m.a(x) + m.v.view(1, -1, 1, 1),
    "a number of more axes": lambda m, x: m.a(x) * m.v[:1].view(1, 1, 1, 1),
    "moved axes": lambda m, x: F.linear(m.b(x).permute(0, 2, 3, 1), m.b.weight.flatten(1)).permute(0, 3, 1, 2),
    "a functional layer": lambda m, x: F.conv2d(x, m.kernel)[:, :, 1:-1],
}
ALIKE: dict[str, Forward] = {
    "layers": lambda m, x: m.b(m.a(x)),
    "branches": lambda m, x: m.a(x) + m.b(x),
    "a crop from the back": lambda m, x: m.a(x)[..., 1:-1] + m.b(x)[..., 1:-1],
    "channels from the back": lambda m, x: m.a(x).flip(-3),
    "rolled channels from the back": lambda m, x: m.a(x).roll(1, -3),
    "a concatenation from the back": lambda m, x: m.w(torch.cat([m.a(x), m.b(x)], -3)),
    "a scale": lambda m, x: m.a(x) * m.v.view(-1, 1, 1),
    "a number": lambda m, x: m.a(x) * 2.0 + 1.0,
    "padding": lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1))),
    "pooling": lambda m, x: F.avg_pool2d(m.a(x), 2) * m.v.view(-1, 1, 1),
}


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("name", [*OTHERS, *ALIKE])
def test_without_a_batch_it_is_the_same_or_an_error(name: str, shown: bool) -> None:
    model = ready(Model({**OTHERS, **ALIKE}[name]))
    deployed = reptool.deploy(model, image(2) if shown else None)
    assert_same(model(image(2)), deployed(image(2)))
    try:
        wanted = model(image())
    except Exception:
        wanted = None
    try:
        given = deployed(image())
    except (SpecializedError, RuntimeError, ValueError):
        assert name in OTHERS
        return
    if wanted is not None:
        assert_same(wanted, given)


@pytest.mark.parametrize("name", ALIKE)
def test_what_means_the_same_at_every_rank_is_not_guarded(name: str) -> None:
    model = ready(Model(ALIKE[name]))
    for shown in (None, image(2), image()):
        deployed = reptool.deploy(model, shown)
        assert all(guarded_rank(m) is None for m in deployed.modules())
        assert_same(model(image()), deployed(image()))
    assert len(reptool.report(reptool.deploy(model, image(2))).regions) == 1


def test_a_norm_that_checks_its_rank_needs_no_guard() -> None:
    deployed = reptool.deploy(ready(Model(lambda m, x: m.norm(m.a(x)))), image(2))
    assert all(guarded_rank(m) is None for m in deployed.modules())


def test_layers_that_are_called_by_name_are_guarded_too() -> None:
    model = ready(Model(lambda m, x: m.free(m.a(input=x))))
    deployed = reptool.deploy(model, image(2))
    assert len(reptool.report(deployed).regions) == 1
    assert_same(model(image(2)), deployed(image(2)))
    with pytest.raises(SpecializedError, match="4 dimensions and got 3"):
        deployed(image())


STEPS: list[Forward] = [
    lambda m, x: m.a(x),
    lambda m, x: m.b(x),
    lambda m, x: m.free(x),
    lambda m, x: x * m.v.view(-1, 1, 1),
    lambda m, x: x + m.v.view(1, -1, 1, 1),
    lambda m, x: x.flip(1),
    lambda m, x: x.flip(-3),
    lambda m, x: x[..., 1:],
    lambda m, x: F.pad(x, (1, 0, 0, 1)),
]


@given(st.lists(st.integers(0, len(STEPS) - 1), min_size=2, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_any_chain_without_a_batch_is_the_same_or_an_error(steps: list[int], shown: bool, batch: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for step in steps:
            x = STEPS[step](m, x)
        return x

    model = ready(Model(forward))
    if len(set(steps)) < len(steps):
        return  # a module that is called twice is left
    deployed = reptool.deploy(model, (image(2) if batch else image()) if shown else None)
    for x in (image(2), image()):
        try:
            wanted = model(x)
        except Exception:
            continue
        try:
            given = deployed(x)
        except SpecializedError:
            continue
        assert_same(wanted, given)
