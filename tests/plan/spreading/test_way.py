"""Norms that go to several places: beside other parts of a concatenation, into summands that one layer computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.refusal import Code
from reptool.testing import randomize

C = 4


class Net(nn.Module):
    def __init__(self, forward: Callable[[Any, Tensor, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.body = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, torch.relu(x), torch.tanh(x))


def pointwise(width: int = C, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(width, C, 1, **options)


def norm(width: int = C) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(C, C, 3, 3))


def at(m: Any, x: Tensor, d: int) -> Tensor:
    return F.conv2d(x, m.w, padding=d, dilation=d)


FOLDED: dict[str, tuple[Net, int]] = {  # with the layers that are left
    "one part": (Net(lambda m, z, r: m.p(torch.cat([m.n(r), z], 1)), p=pointwise(2 * C), n=norm()), 1),
    "the last part": (Net(lambda m, z, r: m.p(torch.cat([z, z, m.n(r)], 1)), p=pointwise(3 * C), n=norm()), 1),
    "two parts": (
        Net(lambda m, z, r: m.p(torch.cat([m.n(r), z, m.o(z)], 1)), p=pointwise(3 * C), n=norm(), o=norm()),
        1,
    ),
    "a scale": (
        Net(lambda m, z, r: m.p(torch.cat([z, r * m.g], 1)), p=pointwise(2 * C), g=nn.Parameter(torch.randn(C, 1, 1))),
        1,
    ),
    "two layers behind": (
        Net(
            lambda m, z, r: m.p(y := torch.cat([m.n(r), z], 1)) * torch.sigmoid(m.q(y)),
            p=pointwise(2 * C),
            q=pointwise(2 * C),
            n=norm(),
        ),
        2,
    ),
    "beyond a pooling": (
        Net(
            lambda m, z, r: m.p(
                torch.cat([F.max_pool2d(m.n(r).mean((2, 3), keepdim=True), 1), z.mean((2, 3), True)], 1)
            ),
            p=pointwise(2 * C),
            n=norm(),
        ),
        1,
    ),
    "a layer beside": (
        Net(
            lambda m, z, r: m.p(torch.cat([m.n(r), m.a(z)], 1)),
            p=pointwise(2 * C),
            n=norm(),
            a=nn.Conv2d(C, C, 3, 1, 1),
        ),
        2,
    ),
    "a norm between sums": (
        Net(
            lambda m, z, r: m.n(m.a(z) + m.b(r)) + m.c(z),
            a=nn.Conv2d(C, C, 3, 1, 1),
            b=pointwise(),
            c=pointwise(),
            n=norm(),
        ),
        2,
    ),
    "a norm behind": (
        Net(
            lambda m, z, r: m.n(m.a(z) + m.b(r) + m.c(z)),
            a=nn.Conv2d(C, C, 3, 1, 1),
            b=pointwise(),
            c=pointwise(),
            n=norm(),
        ),
        2,
    ),
    "two norms": (
        Net(
            lambda m, z, r: m.n(m.o(m.a(z) + m.b(r)) + m.c(z)),
            a=nn.Conv2d(C, C, 3, 1, 1),
            b=pointwise(),
            c=pointwise(),
            n=norm(),
            o=norm(),
        ),
        2,
    ),
    "a scale between sums": (
        Net(lambda m, z, r: 3 * (m.a(z) + m.b(r)) + m.c(z), a=nn.Conv2d(C, C, 3, 1, 1), b=pointwise(), c=pointwise()),
        2,
    ),
    "one layer twice": (Net(lambda m, z, r: m.n(m.a(z) + m.a(r)), a=pointwise(bias=False), n=norm()), 1),
    "one layer three times": (
        Net(lambda m, z, r: m.n(m.a(z) + (m.a(r) + m.a(z * r))), a=pointwise(), n=norm()),
        1,
    ),
    "one weight, two dilations, two values": (
        Net(lambda m, z, r: m.n(at(m, z, 1) + at(m, r, 2)), w=weight(), n=norm()),
        0,
    ),
    "one weight, one norm": (
        Net(lambda m, z, r: torch.cat([torch.relu(m.n(at(m, z, d))) for d in (1, 2, 3)], 1), w=weight(), n=norm()),
        0,
    ),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("given", [False, True])
def test_norms_fold(name: str, given: bool) -> None:
    made, layers = FOLDED[name]
    model, x = randomize(made.eval(), 3).double(), torch.randn(2, C, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x) if given else reptool.deploy(model)
    report = reptool.report(deployed)
    assert report.norms[1] == 0
    assert report.layers[1] == layers
    assert not given or not any(r.code is Code.DISTRIBUTE for r in report.refusals), report.refusals
    for size in ((9, 8), (17, 12)):
        y = torch.randn(1, C, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(y), model(y), rtol=1e-10, atol=1e-10)


def written_in_front(m: Any, z: Tensor, r: Tensor) -> Tensor:
    scaled = r * m.g
    r.mul_(0.5)
    return m.p(F.max_pool2d(scaled, 3, 1, 1)) + r  # type: ignore[no-any-return]


def scale() -> nn.Parameter:
    return nn.Parameter(torch.rand(C, 1, 1) + 0.5)


LEFT: dict[str, tuple[Net, Code]] = {
    "padded": (
        Net(lambda m, z, r: m.p(torch.cat([m.n(r), z], 1)), p=nn.Conv2d(2 * C, C, 3, padding=1), n=norm()),
        Code.BORDER_BIAS,
    ),
    "along the image": (
        Net(lambda m, z, r: m.p(torch.cat([m.n(r), z], 2)), p=pointwise(), n=norm()),
        Code.LAYOUT,
    ),
    "read elsewhere": (
        Net(lambda m, z, r: m.p(y := torch.cat([m.n(r), z], 1)) + y[:, :C], p=pointwise(2 * C), n=norm()),
        Code.DISTRIBUTE,
    ),
    "written in front": (Net(written_in_front, p=pointwise(), g=scale()), Code.MUTATED),
    "written behind": (
        Net(lambda m, z, r: m.p(F.max_pool2d((r * m.g).mul_(0.5), 3, 1, 1)) + r, p=pointwise(), g=scale()),
        Code.MUTATED,
    ),
    "norms of their own": (
        Net(
            lambda m, z, r: torch.relu(m.n(at(m, z, 1))) + torch.relu(m.o(at(m, z, 2))), w=weight(), n=norm(), o=norm()
        ),
        Code.SHARED,
    ),
    "numbers of their own": (
        Net(lambda m, z, r: torch.relu(2.0 * m.a(z)) + torch.relu(m.n(3.0 * m.a(r))), a=pointwise(), n=norm()),
        Code.SHARED,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_norms_that_stay(name: str) -> None:
    made, code = LEFT[name]
    model, x = randomize(made.eval(), 3).double(), torch.randn(2, C, 9, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, x)
    report = reptool.report(deployed)
    assert report.norms[1] == report.norms[0]
    assert code in {r.code for r in report.refusals}, report.refusals
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
