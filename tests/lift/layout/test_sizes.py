"""Layers with nothing but views between them merge, where the views leave the channels alone; sizes decide nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reptool
from reptool.lift.layout import sizes
from reptool.lift.layout.sizes import ONE, Size, completed, numbers, same_axes
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Tensor]


class Two(nn.Module):
    """Two operations, and a forward of one's own."""

    def __init__(self, a: nn.Module, b: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.a, self.b, self.own = a, b, forward

    def forward(self, x: Tensor) -> Tensor:
        """By one of the forms below."""
        return self.own(self, x)


def symbols(*names: str) -> list[Size]:
    return [Size(1, frozenset({(name, 1)})) for name in names]


# --- sizes
def test_sizes_are_monomials() -> None:
    b, c, h = symbols("b", "c", "h")
    assert (b * c * Size(6)).over(c * Size(2)) == b * Size(3)
    assert (b * c).over(h) is None
    assert Size(6).over(Size(4)) is None
    assert b * ONE == b


def test_what_is_left_and_which_axes_stay() -> None:
    b, c, h, w = symbols("b", "c", "h", "w")
    assert completed([b, c, h, w], [b, -1, h * w]) == [b, c, h * w]
    assert completed([b, c], [b, Size(3), -1]) == [b, Size(3), None]
    assert same_axes([b, c, h, w], [b, c, h * w]) == [0, 1, -1]
    assert same_axes([b, h, w, c], [b * h * w, c]) == [-1, 3]
    assert same_axes([b, c, h, w], [b, c, w, h]) == [0, 1, -1, -1]
    assert same_axes([b, c, h], [b, None, None]) == [0, -1, -1]
    assert same_axes([b, h, c], [None, c]) == [-1, 2]
    assert same_axes([b, h, c], [b, c, h]) == [0, -1, -1]


def test_numbers_are_those_of_what_is_read() -> None:
    b, h, w = symbols("b", "h", "w")
    known: dict[Any, int] = {}
    assert numbers([b, h, w, -1], [b, h * w, Size(4)], (2, 6, 4), known) == [2, 1, 6, -1]
    assert numbers([h * w], [], (6,), known) == [6]
    assert numbers([*symbols("z")], [b], (2,), {}) is None
    assert numbers([None, Size(3), -1, None], [b, h, w], (2, 6, 5), {}) == [2, 3, -1, 5]
    assert numbers([b], [b, h], (2,), {}) is None


# --- networks
def tokens(width: int = 8) -> Tensor:
    return torch.randn(2, 12, width)


def images(width: int = 8) -> Tensor:
    return torch.randn(2, width, 6, 9)


def lin(out: int = 8, width: int = 8, bias: bool = True) -> nn.Module:
    return nn.Linear(width, out, bias)


def conv(size: int = 1, out: int = 8, bias: bool = True) -> nn.Module:
    return nn.Conv2d(8, out, size, padding=size // 2, bias=bias)


def norm() -> nn.Module:
    return nn.BatchNorm2d(8)


def starred(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.view(*y.shape))


def whole(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.reshape(y.size()))


def as_itself(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.view_as(y))


def rows(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).view(-1, 8))


def there_and_back(m: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    return m.b(m.a(x.view(-1, c)).view(b, n, -1))


def multiplied(m: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    return m.b(m.a(x).view(b * n, c))


def sliced(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.reshape(-1, y.shape[-1])).reshape(*y.shape[:-1], -1)


def added(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.reshape(-1, 8)).reshape(y.shape[:-1] + (8,))  # noqa: RUF005 as it is written


def flattened(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).flatten(0, 1))


def unflattened(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    return m.b(m.a(x.flatten(0, 1)).unflatten(0, (b, n)))


def positions_unflattened(m: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    return m.b(m.a(x).flatten(2).unflatten(2, (h, w)))


def tokens_to_image(m: Any, x: Tensor) -> Tensor:
    b, _, c = x.shape
    return m.b(m.a(x).transpose(1, 2).reshape(b, c, 3, 4))


def image_to_tokens(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    b, c, h, w = y.shape
    return m.b(y.permute(0, 2, 3, 1).reshape(b, h * w, c))


def through_tokens(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(b, c, h, w))


def through_tokens_left(m: Any, x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return m.b(m.a(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(b, -1, h, w))


def rearranged(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    b, _, c = y.shape
    return m.b(y.reshape(b, 3, 4, c).permute(0, 3, 1, 2))


def windows(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    y = m.a(x).view(b, c, h // 3, 3, w // 3, 3).permute(0, 2, 4, 1, 3, 5)
    return m.b(y.reshape(-1, c, 3, 3))


def rows_of_positions(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x).view(b, c, h * w))


def normed_rows(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.flatten(0, 1)).reshape_as(y)


def new_axis(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).unsqueeze(-2).squeeze(-2))


def to_pixels(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).unsqueeze(-1).unsqueeze(-1))


def frames(m: Any, x: Tensor) -> Tensor:
    b, t, c, h, w = x.shape
    y = m.a(x.view(b * t, c, h, w)).view(b, t, c, h, w)
    return m.b(y.view(b * t, c, h, w))


def turned(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x).view(b, c, w, h))


def image_unflattened(m: Any, x: Tensor) -> Tensor:
    _, _, h, w = x.shape
    return m.b(m.a(x).flatten(2).unflatten(2, (h, w)))


FORMS: dict[str, tuple[Forward, Callable[[], nn.Module], Callable[[], nn.Module], Tensor]] = {
    "starred norm": (starred, lambda: conv(3), norm, images()),
    "starred layers": (starred, lambda: conv(bias=False), lambda: conv(3), images()),
    "starred linear": (starred, lin, lin, tokens()),
    "whole shape": (whole, lambda: conv(3), norm, images()),
    "as itself": (as_itself, lambda: conv(3), norm, images()),
    "rows": (rows, lin, lin, tokens()),
    "there and back": (there_and_back, lin, lin, tokens()),
    "multiplied": (multiplied, lin, lin, tokens()),
    "sliced": (sliced, lin, lin, tokens()),
    "added": (added, lin, lin, tokens()),
    "flattened": (flattened, lin, lin, tokens()),
    "unflattened": (unflattened, lin, lin, tokens()),
    "positions unflattened": (positions_unflattened, lambda: conv(3), norm, images()),
    "tokens to image": (tokens_to_image, lin, conv, tokens()),
    "image to tokens": (image_to_tokens, conv, lin, images()),
    "through tokens": (through_tokens, lin, conv, images()),
    "through tokens, norm": (through_tokens, lin, norm, images()),
    "through tokens, rest": (through_tokens_left, lin, conv, images()),
    "rearranged": (rearranged, lin, conv, tokens()),
    "windows": (windows, conv, conv, images()),
    "rows of positions": (rows_of_positions, lambda: conv(3), lambda: nn.BatchNorm1d(8), images()),
    "normed rows": (normed_rows, lin, lambda: nn.BatchNorm1d(8), tokens()),
    "new axis": (new_axis, lin, lin, tokens()),
    "to pixels": (to_pixels, lin, conv, torch.randn(5, 8)),
    "frames": (frames, lambda: conv(3), norm, torch.randn(2, 3, 8, 6, 5)),
    "turned, pointwise": (turned, lambda: conv(3), conv, images()),
    "other width, unflattened": (image_unflattened, lambda: conv(3), lambda: conv(out=4), images()),
    "other width, rest": (there_and_back, lin, lambda: lin(16), tokens()),
}
LAYERS = (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm)


def made(form: str) -> tuple[nn.Module, Tensor]:
    forward, a, b, x = FORMS[form]
    return randomize(Two(a(), b(), forward), 0).eval().double(), x.double()


def count(model: nn.Module) -> int:
    return sum(isinstance(m, LAYERS) for m in model.modules())


@pytest.mark.parametrize("form", FORMS)
def test_layers_with_views_between_them_are_one(form: str) -> None:
    model, x = made(form)
    deployed = reptool.deploy(model, x)
    assert count(deployed) == 1, reptool.report(deployed)
    fixed = form in ("tokens to image", "rearranged")
    for batch in (1, 2, 5):
        for positions in (2, 0, -3):
            grown = [batch, *x.shape[1:]]
            if x.dim() > 2 and not fixed:
                grown[-2] += (
                    3 * positions if form == "windows" and positions > 0 else 0 if form == "windows" else positions
                )
            other = torch.randn(grown, dtype=torch.float64)
            torch.testing.assert_close(deployed(other), model(other), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_without_example_inputs_it_is_the_same_function(form: str) -> None:
    model, x = made(form)
    torch.testing.assert_close(reptool.deploy(model)(x), model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_exported_programs_tell_their_sizes(form: str) -> None:
    model, x = made(form)
    free = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(model, (x,), dynamic_shapes=(free,) if form in DYNAMIC else None)
    deployed = reptool.deploy(program)
    report = reptool.report(deployed)
    assert report.layers[1] + report.norms[1] == 1, report
    for batch in (2, 5):
        other = torch.randn(batch, *x.shape[1:], dtype=torch.float64) if form in DYNAMIC else x
        torch.testing.assert_close(deployed.module()(other), model(other), rtol=1e-10, atol=1e-10)


DYNAMIC = ("rows", "multiplied", "image to tokens", "through tokens", "windows", "flattened", "starred layers")


def test_a_norm_of_rows_asks_for_no_rank() -> None:
    def rows_normed(m: Any, x: Tensor) -> Tensor:
        found: Tensor = m.b(m.a(x).reshape(-1, 8))
        return found

    model = randomize(Two(lin(), nn.BatchNorm1d(8), rows_normed), 0).eval().double()
    deployed = reptool.deploy(model)
    assert count(deployed) == 1
    for shape in ((5, 8), (2, 3, 8), (2, 3, 4, 8), (8,)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


# --- what is no such view
MERGES = "named width of a view that is the identity"
"""Merged all the same: the view that names the width goes, since the method is written anew."""


def mixed(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x.permute(0, 2, 3, 1)).reshape(b, c, h, w))


def joined(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x).view(b * c // 8, 8, h, w).transpose(0, 1).reshape(-1, 8, h, w))


def split_channels(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.b(m.a(x).view(b, 2, c // 2, h, w).reshape(b, c // 2, 2, h, w).transpose(1, 2).reshape(b, c, h, w))


def of_another(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(y.reshape(x.transpose(2, 3).shape))


def rows_twice(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x.reshape(-1, 8)).reshape(-1, 8))


BAD: dict[str, tuple[Forward, Callable[[], nn.Module], Callable[[], nn.Module], Tensor]] = {
    "channels become rows": (mixed, lin, norm, torch.randn(8, 8, 8, 8)),
    "channels become positions": (mixed, lin, conv, torch.randn(2, 8, 8, 8)),
    "turned before 3x3": (turned, lambda: conv(bias=False), lambda: conv(3), torch.randn(2, 8, 6, 6)),
    "shape of another": (of_another, lambda: conv(bias=False), lambda: conv(3), torch.randn(2, 8, 6, 6)),
    "named width": (rows, lin, lambda: lin(16), tokens()),
    "read width": (sliced, lin, lambda: lin(16), tokens()),
    "named width of a view that is the identity": (rows_twice, lin, lambda: lin(4), tokens()),
    "batch and channels": (joined, conv, norm, images()),
    "groups joined otherwise": (split_channels, conv, norm, images()),
}


@pytest.mark.parametrize("given", ["module", "nothing shown", "program"])
@pytest.mark.parametrize("form", BAD)
def test_what_mixes_stays_right(form: str, given: str) -> None:
    forward, a, b, x = BAD[form]
    model, x = randomize(Two(a(), b(), forward), 0).eval().double(), x.double()
    if given == "program":
        deployed: Any = reptool.deploy(torch.export.export(model, (x,))).module()
    else:
        deployed = reptool.deploy(model, *((x,) if given == "module" else ()))
        assert count(deployed) == (1 if form == MERGES else 2), reptool.report(deployed)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


class Residual(nn.Module):
    """Heads that are split and joined, and two shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.a, self.b = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """As transformers write it."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = (torch.softmax(q @ k.transpose(-2, -1), -1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(y)
        return x + self.b(torch.relu(self.a(x)))


def test_sizes_behind_many_shortcuts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[int, int] = {}
    behind, calls = sizes._behind, [0]

    def counted(*given: Any) -> Any:
        calls[0] += 1
        assert calls[0] < 100_000, "each shortcut is followed on both sides, and what lies behind it once for each"
        return behind(*given)

    monkeypatch.setattr(sizes, "_behind", counted)
    for depth in (4, 8):
        calls[0] = 0
        reptool.explain(nn.Sequential(*(Residual() for _ in range(depth))).eval(), torch.randn(2, 5, 8))
        counts[depth] = calls[0]
    assert 0 < counts[8] <= 5 * counts[4]
