"""Channels in another order, axes that are moved, pieces of a width that only their readers tell."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.refusal import Code
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Any]
BARE = pytest.mark.parametrize("bare", [False, True])
IMAGES = ((2, 4, 6, 5), (1, 4, 1, 2), (3, 4, 9, 4))


class Model(nn.Module):
    """Layers of every kind."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.own, self.vector = forward, nn.Parameter(torch.rand(4))
        self.order = torch.tensor([2, 0, 3, 1])
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.wide, self.norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.first, self.last, self.line = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.part, self.other = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.shuffle, self.third = nn.ChannelShuffle(2), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        """By one of the forms below."""
        return self.own(self, x)


def check(forward: Forward, bare: bool, shapes: tuple[tuple[int, ...], ...] = IMAGES) -> tuple[int, set[Code]]:
    """Deploys a model and compares it at all shapes; how many regions were fused, and what was refused."""
    model = randomize(Model(forward).eval()).double()
    deployed = reptool.deploy(model, *(() if bare else (torch.randn(shapes[0], dtype=torch.float64),)))
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    report = reptool.report(deployed)
    return len(report.regions), {r.code for r in report.refusals}


def halves(self: Any, x: Tensor) -> Tensor:
    """Two halves of the input, each through a convolution."""
    pieces = x.chunk(2, 1)
    return torch.cat([self.part(pieces[0]), self.other(pieces[-1])], 1)


FUSED: dict[str, Forward] = {
    "flip": lambda self, x: self.norm(self.a(x).flip(1)),
    "flip of a list": lambda self, x: self.norm(torch.flip(self.a(x), [-3])),
    "roll": lambda self, x: self.norm(self.a(x).roll(1, 1)),
    "roll back": lambda self, x: self.norm(torch.roll(self.a(x), shifts=(-3,), dims=(1,))),
    "repeat": lambda self, x: self.wide(self.a(x).repeat(1, 2, 1, 1)),
    "repeat_interleave": lambda self, x: self.wide(self.a(x).repeat_interleave(2, dim=1)),
    "channel_shuffle": lambda self, x: self.norm(F.channel_shuffle(self.a(x), 2)),
    "ChannelShuffle": lambda self, x: self.norm(self.shuffle(self.a(x))),
    "index": lambda self, x: self.norm(self.a(x)[:, self.order]),
    "index_select": lambda self, x: self.norm(self.a(x).index_select(1, self.order)),
    "lerp": lambda self, x: torch.lerp(self.a(x), self.b(x), self.vector.view(-1, 1, 1)),
    "lerp of a method": lambda self, x: self.norm(self.a(x).lerp(x, self.vector.view(1, -1, 1, 1))),
    "movedim": lambda self, x: self.norm(self.first(x.movedim(1, -1)).movedim(-1, 1)),
    "movedim of lists": lambda self, x: self.norm(torch.movedim(self.first(torch.moveaxis(x, 1, 3)), (3,), (1,))),
    "chunk": halves,
}


@BARE
@pytest.mark.parametrize("name", FUSED)
def test_it_is_one_layer(name: str, bare: bool) -> None:
    regions, codes = check(FUSED[name], bare)
    assert regions == 1
    assert not codes


LINES: dict[str, Forward] = {
    "mT": lambda self, x: self.line(self.first(x.mT).mT),
    "swapaxes": lambda self, x: self.line(self.first(x.swapaxes(1, 2)).swapaxes(1, 2)),
    "transpose": lambda self, x: self.line(self.first(x.transpose(-1, -2)).transpose(-1, -2)),
}


@BARE
@pytest.mark.parametrize("name", LINES)
def test_a_norm_behind_moved_axes_needs_the_rank(name: str, bare: bool) -> None:
    regions, codes = check(LINES[name], bare, ((2, 4, 5), (1, 4, 3)))
    assert (regions, codes) == ((0, {Code.RANK_UNKNOWN}) if bare else (1, set()))


def test_an_order_in_front_of_a_layer_is_taken_into_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x[:, self.order]))

    assert check(forward, False)[0] == 1
    assert check(forward, True)[0] == 0  # there may be more channels than are picked


TRAPS: dict[str, Forward] = {
    "flip of rows": lambda self, x: self.norm(self.a(x).flip(2)),
    "flip of columns": lambda self, x: self.norm(self.a(x).flip(-1)),
    "flip of both": lambda self, x: self.norm(self.a(x).flip(1, 2)),
    "flip of the batch": lambda self, x: self.norm(self.a(x).flip(0)),
    "roll of rows": lambda self, x: self.norm(self.a(x).roll(1, 2)),
    "roll of all": lambda self, x: self.norm(self.a(x).roll(1)),
    "roll of two": lambda self, x: self.norm(self.a(x).roll((1, 1), (1, 2))),
    "repeat of rows": lambda self, x: self.norm(self.a(x).repeat(1, 1, 2, 1)),
    "repeat of the batch": lambda self, x: self.norm(self.a(x).repeat(2, 1, 1, 1)),
    "repeat with an axis": lambda self, x: self.a(x).repeat(1, 2, 1, 1, 1),
    "repeat_interleave of all": lambda self, x: torch.repeat_interleave(self.a(x), 2),
    "repeat_interleave of rows": lambda self, x: self.norm(self.a(x).repeat_interleave(2, 2)),
    "lerp of columns": lambda self, x: torch.lerp(self.a(x), self.b(x), torch.linspace(0, 1, x.shape[-1]).to(x)),
    "lerp of data": lambda self, x: torch.lerp(self.a(x), self.b(x), torch.sigmoid(x)),
    "movedim of rows": lambda self, x: self.norm(self.b(x).movedim(2, 3)),
    "movedim to the batch": lambda self, x: self.b(x).movedim(1, 0) * self.vector,
    "unbind": lambda self, x: self.norm(torch.stack(self.a(x).unbind(1)[::-1], 1)),
    "unbind of rows": lambda self, x: torch.stack(self.a(x).unbind(2), 2) * self.vector.view(4, 1, 1),
}


@BARE
@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_order_of_channels_stays_right(name: str, bare: bool) -> None:
    check(TRAPS[name], bare, ((2, 4, 6, 4), (4, 4, 1, 4), (4, 4, 9, 4)))


def test_an_order_is_a_copy_and_written_as_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        z = y.flip(1)
        y.mul_(2)
        return self.norm(z) + y

    for bare in (False, True):
        check(forward, bare)


PIECES: dict[str, Forward] = {
    "fewer pieces read": lambda self, x: self.part(x.chunk(3, 1)[0]) + self.other(x.chunk(3, 1)[1]),
    "one piece unread": lambda self, x: (lambda p: torch.cat([self.part(p[0]), p[1]], 1))(x.chunk(2, 1)),
    "split": lambda self, x: (lambda p: torch.cat([self.part(p[0]), self.other(p[1])], 1))(x.split(2, 1)),
    "unequal": lambda self, x: (lambda p: torch.cat([self.part(p[0]), self.third(p[-1])], 1))(x.chunk(2, 1)),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_unknown_width_are_refused(name: str) -> None:
    channels = {"unequal": 3, "fewer pieces read": 6}.get(name, 4)
    regions, codes = check(PIECES[name], True, ((2, channels, 6, 5), (1, channels, 1, 2)))
    assert name == "unequal" or regions == 0
    assert name == "unequal" or Code.CHANNELS in codes
