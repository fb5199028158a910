"""Channels shuffled by views, against the model itself at several sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Any]
BARE = pytest.mark.parametrize("bare", [False, True])


class Model(nn.Module):
    """A layer, a shuffle in three groups, and what stands behind it."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.own, self.groups = forward, 3
        self.conv, self.norm, self.last = nn.Conv2d(4, 12, 3, padding=1), nn.BatchNorm2d(12), nn.Conv2d(12, 2, 1)
        self.line, self.rows = nn.Conv1d(4, 12, 3, padding=1), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Any:
        """By one of the forms below."""
        return self.own(self, x)


def deployed_of(forward: Forward, bare: bool, shapes: tuple[tuple[int, ...], ...]) -> reptool.Report:
    """Deploys a model, compares it at all shapes, and reports."""
    model = randomize(Model(forward).eval()).double()
    deployed = reptool.deploy(model, *(() if bare else (torch.randn(shapes[0], dtype=torch.float64),)))
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    return reptool.report(deployed)


def shuffled(self: Any, y: Tensor) -> Tensor:
    """As torchvision has it."""
    b, c, h, w = y.size()
    y = y.view(b, self.groups, c // self.groups, h, w)
    return torch.transpose(y, 1, 2).contiguous().view(b, -1, h, w)


def older(self: Any, y: Tensor) -> Tensor:
    """As torchvision had it."""
    b, c, h, w = y.data.size()
    y = y.reshape(b, self.groups, c // self.groups, h, w).permute(0, 2, 1, 3, 4)
    return y.reshape(b, c, h, w)


def indexed(self: Any, y: Tensor) -> Tensor:
    """Every size by itself, and the last by the whole shape."""
    z = y.view(y.size(0), -1, 4, y.size(2), y.shape[3]).swapaxes(1, 2)
    return z.reshape(y.shape)


def numbers(self: Any, y: Tensor) -> Tensor:
    """Numbers for all channels, and the batch left to be found."""
    return torch.reshape(y.view(-1, 3, 4, y.size(2), y.size(3)).transpose(2, 1), (-1, 12, y.size(2), y.size(3)))


FORMS = {"torchvision": shuffled, "older": older, "indexed": indexed, "numbers": numbers}


@BARE
@pytest.mark.parametrize("name", FORMS)
def test_a_shuffle_by_views_is_an_order_of_channels(name: str, bare: bool) -> None:
    form = FORMS[name]
    shapes = ((2, 4, 6, 5), (1, 4, 1, 2), (3, 4, 12, 3))
    assert len(deployed_of(lambda self, x: self.norm(form(self, self.conv(x))), bare, shapes).regions) == 1
    chain = deployed_of(lambda self, x: self.last(form(self, torch.relu(self.norm(self.conv(x))))), bare, shapes)
    assert len(chain.regions) == 2


@BARE
def test_one_axis(bare: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, c, n = (y := self.line(x)).shape
        return self.rows(y.view(b, self.groups, c // self.groups, n).transpose(1, 2).reshape(b, c, n))  # type: ignore[no-any-return]

    assert len(deployed_of(forward, bare, ((2, 4, 6), (1, 4, 1), (3, 4, 12))).regions) == 1


def swapped_sizes(self: Any, y: Tensor) -> Tensor:
    """Rows and columns trade places at the end."""
    b, c, h, w = y.shape
    return y.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, w, h)


def in_batch(self: Any, y: Tensor) -> Tensor:
    """Samples are shuffled."""
    b, c, h, w = y.shape
    return y.view(3, b // 3, c, h, w).transpose(0, 1).reshape(b, c, h, w)


def in_rows(self: Any, y: Tensor) -> Tensor:
    """Rows are shuffled."""
    b, c, h, w = y.shape
    return y.view(b, c, h // 3, 3, w).transpose(2, 3).reshape(b, c, h, w)


def across(self: Any, y: Tensor) -> Tensor:
    """Channels and rows are mixed."""
    b, c, h, w = y.shape
    return y.view(b, 3, c // 3, h, w).transpose(2, 3).reshape(b, c, h, w)


def other_size(self: Any, y: Tensor) -> Tensor:
    """The batch of the flipped value, which is another axis of this one."""
    b, h = y.size(2), y.size(0)
    return y.view(b, 3, 4, h, y.size(3)).transpose(1, 2).reshape(b, 12, h, y.size(3))


def not_swapped(self: Any, y: Tensor) -> Tensor:
    """Split and joined in other groups."""
    b, c, h, w = y.shape
    return y.view(b, 3, 4, h, w).transpose(1, 2).transpose(1, 2).reshape(b, c, h, w)


TRAPS = {f.__name__: f for f in (swapped_sizes, across, other_size, not_swapped)}


@BARE
@pytest.mark.parametrize("name", TRAPS)
def test_what_is_no_shuffle_of_channels_stays_right(name: str, bare: bool) -> None:
    trap = TRAPS[name]
    shapes = ((6, 4, 6, 6), (6, 4, 6, 9), (3, 4, 3, 12)) if name != "other_size" else ((6, 4, 6, 6), (6, 4, 6, 9))
    report = deployed_of(lambda self, x: self.norm(trap(self, self.conv(x))), bare, shapes)
    assert not report.regions


@BARE
@pytest.mark.parametrize("other", [in_batch, in_rows], ids=lambda f: f.__name__)
def test_what_leaves_the_channels_alone_is_read_through(other: Any, bare: bool) -> None:
    shapes = ((6, 4, 6, 6), (6, 4, 6, 9), (3, 4, 3, 12))
    report = deployed_of(lambda self, x: self.norm(other(self, self.conv(x))), bare, shapes)
    assert len(report.regions) == 1


def test_a_shuffled_value_that_is_also_read_split_stays() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        z = y.view(y.size(0), 3, 4, y.size(2), y.size(3))
        return self.norm(z.transpose(1, 2).reshape(y.shape)), z

    report = deployed_of(forward, True, ((2, 4, 6, 5), (1, 4, 1, 2)))
    assert not report.regions
    assert Code.READ_ELSEWHERE in {r.code for r in report.refusals}


def test_a_shuffle_that_is_written_in_between_stays_right() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.conv(x)
        z = y.view(y.size(0), 3, 4, y.size(2), y.size(3))
        z[:, 0] = 0
        return self.norm(z.transpose(1, 2).reshape(y.shape))

    deployed_of(forward, True, ((2, 4, 6, 5), (1, 4, 1, 2)))


def test_a_value_without_axes_is_reshaped() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) * x.mean().reshape(1)  # type: ignore[no-any-return]

    model, x = Model().eval(), torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(reptool.deploy(model, x)(x), model(x))
