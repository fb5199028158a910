"""What treats all channels alike: the law itself, and norms and scales that cross it, borders included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reptool
from reptool import Code
from reptool.testing import randomize

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A passage of images, and what crosses it."""

    function: Function
    positive: bool = False
    shifts: bool = True
    blocks: int = 1
    rank: int = 4


def up(mode: str, **options: Any) -> Function:
    """Resampling."""
    return lambda x: F.interpolate(x, mode=mode, **options)


CASES: dict[str, Case] = {
    "nearest": Case(up("nearest", scale_factor=2)),
    "nearest down": Case(up("nearest", size=(3, 4))),
    "nearest exact": Case(up("nearest-exact", scale_factor=1.7)),
    "bilinear": Case(up("bilinear", scale_factor=2)),
    "bilinear corners": Case(up("bilinear", size=(11, 7), align_corners=True)),
    "bicubic": Case(up("bicubic", scale_factor=1.5)),
    "area": Case(up("area", size=(3, 5))),
    "antialias": Case(up("bilinear", scale_factor=0.5, antialias=True)),
    "average": Case(lambda x: F.avg_pool2d(x, 3, 2)),
    "average, border counted": Case(lambda x: F.avg_pool2d(x, 3, 2, 1), shifts=False),
    "average, border not counted": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
    "average, ceiling": Case(lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True)),
    "average, ceiling and border": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, True, True), shifts=False),
    "average, ceiling, border not counted": Case(lambda x: F.avg_pool2d(x, 3, 2, 1, True, False)),
    "average, other divisor": Case(lambda x: F.avg_pool2d(x, 2, divisor_override=3), shifts=False),
    "adaptive average": Case(lambda x: F.adaptive_avg_pool2d(x, (3, 2))),
    "maximum": Case(lambda x: F.max_pool2d(x, 3, 2, 1), positive=True),
    "maximum, ceiling": Case(lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), positive=True),
    "maximum, dilated": Case(lambda x: F.max_pool2d(x, 2, 1, dilation=2), positive=True),
    "adaptive maximum": Case(lambda x: F.adaptive_max_pool2d(x, 2), positive=True),
    "largest": Case(lambda x: x.amax((2, 3), keepdim=True), positive=True),
    "smallest": Case(lambda x: x.amin((-1, -2), keepdim=True), positive=True),
    "mean": Case(lambda x: x.mean((2, 3), keepdim=True)),
    "mean of rows": Case(lambda x: x.mean(-1, keepdim=True)),
    "sum": Case(lambda x: x.sum((2, 3), keepdim=True), shifts=False),
    "mean that drops an axis": Case(lambda x: x.mean(3), rank=3),
    "mean that drops both": Case(lambda x: x.mean((2, 3)), rank=2),
    "one position": Case(lambda x: x[:, :, 1, -1], rank=2),
    "every second position": Case(lambda x: x[..., ::2, 1:]),
    "one row": Case(lambda x: x[:, :, 0], rank=3),
    "pooled and squeezed": Case(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1), rank=2),
    "pooled and flattened": Case(lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1), rank=2),
    "tokens": Case(lambda x: x.flatten(2), rank=3),
    "tokens by a view": Case(lambda x: x.view(x.size(0), x.size(1), -1), rank=3),
    "new axis": Case(lambda x: x.mean((2, 3))[:, :, None, None]),
    "turned round": Case(lambda x: x.flip(2, 3)),
    "rolled": Case(lambda x: torch.roll(x, (1, 2), (2, 3))),
    "transposed": Case(lambda x: x.transpose(2, 3)),
    "reflected border": Case(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    "border of zeros": Case(lambda x: F.pad(x, (1, 1, 1, 1)), shifts=False),
    "positions of one axis": Case(lambda x: x.reshape(x.shape[0], x.shape[1], x.shape[2] * x.shape[3]), rank=3),
    "positions split": Case(lambda x: x.flatten(2).reshape(x.shape[0], -1, x.shape[2], x.shape[3])),
    "positions in another order": Case(lambda x: x.reshape(x.shape[0], x.shape[1], x.shape[3], -1)),
    "pooled and viewed": Case(lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1), rank=2),
    "pooled, viewed by its channels": Case(lambda x: F.adaptive_avg_pool2d(x, 1).view(-1, x.shape[1]), rank=2),
    "shuffled": Case(lambda x: F.pixel_shuffle(x, 2), blocks=4),
}
COMPOSED = {"average, other divisor"}
"""What goes into the layer as a whole."""
KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def along(vector: Tensor, rank: int) -> Tensor:
    """Numbers of the channels as a factor of values of so many axes."""
    return vector.reshape(-1, *[1] * (rank - 2))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)), height=st.integers(4, 9), width=st.integers(4, 9), seed=st.integers(0, 2**16)
)
def test_the_law(name: str, height: int, width: int, seed: int) -> None:
    """``P(scale y + shift) = scale P(y) + shift``, at every size and border; and not beyond the stated domain."""
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    scale, shift, y = (
        torch.randn(s, dtype=torch.float64, generator=generator)
        for s in ((2,), (2,), (2, 2 * case.blocks, height, width))
    )
    scale = scale.abs() if case.positive else scale
    shift = shift if case.shifts else torch.zeros_like(shift)
    wide = [along(v.repeat_interleave(case.blocks), 4) for v in (scale, shift)]
    got = case.function(y * wide[0] + wide[1])
    wanted = case.function(y) * along(scale, case.rank) + along(shift, case.rank)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


class Behind(nn.Module):
    """A layer, a passage, a norm or a scale."""

    def __init__(self, case: Case, norm: bool, positive: bool, shifted: bool) -> None:
        super().__init__()
        self.function, count = case.function, 3
        self.conv = nn.Conv2d(2, count * case.blocks, 3, padding=1, bias=False)
        self.norm = KINDS[case.rank](count) if norm else None
        self.gamma = nn.Parameter(along(torch.tensor([0.5, 2.0, -1.5]), case.rank))
        self.beta = nn.Parameter(along(torch.tensor([0.25, -1.0, 2.0]), case.rank)) if shifted else None
        randomize(self)
        with torch.no_grad():
            if norm and positive:
                self.norm.weight.abs_()
            if norm and not positive:
                self.norm.weight.copy_(torch.tensor([0.5, -0.25, 1.0]))
            if positive:
                self.gamma.abs_()

    def forward(self, x: Tensor) -> Tensor:
        """All three."""
        y = self.function(self.conv(x))
        if self.norm is not None:
            return self.norm(y)  # type: ignore[no-any-return]
        return y * self.gamma if self.beta is None else y * self.gamma + self.beta


def folded(model: nn.Module, *x: Tensor, others: tuple[Tensor, ...] = ()) -> tuple[bool, reptool.Report]:
    """Whether a model has one layer and nothing else to compute once it is deployed, which is compared."""
    model = model.double().eval()
    deployed = reptool.deploy(model, *x)
    with torch.no_grad():
        for value in (*x, *others):
            torch.testing.assert_close(deployed(value), model(value), rtol=1e-9, atol=1e-9)
    report = reptool.report(deployed)
    return bool(report.regions) and not any(r.code in (Code.DISTRIBUTE, Code.NO_LAYER) for r in report.refusals), report


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_norm_behind_a_passage_goes_into_the_layer_in_front_where_the_law_holds(
    name: str, shown: bool, positive: bool
) -> None:
    case = CASES[name]
    model = Behind(case, True, positive, True)
    sizes = [torch.randn(2, 2, *size, dtype=torch.float64) for size in ((8, 6), (5, 7))]
    taken, report = folded(model, *(sizes[:1] if shown else ()), others=tuple(sizes))
    if not shown and case.rank < 4:
        return  # how many axes the norm sees may not be known
    wanted = case.shifts and (positive or not case.positive)
    assert taken == (wanted or name in COMPOSED), report.refusals
    assert report.norms == (1, 0 if taken else 1)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), positive=st.booleans(), shifted=st.booleans())
def test_scales_cross_where_shifts_do_not(name: str, positive: bool, shifted: bool) -> None:
    case = CASES[name]
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64)
    taken, report = folded(Behind(case, False, positive, shifted), x, others=(x[:, :, 1:],))
    wanted = (positive or not case.positive) and (case.shifts or not shifted)
    assert not wanted or taken, report.refusals


class Written(nn.Module):
    """A forward given from outside, with its parts."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.own = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """By the function."""
        return self.own(self, x)


def norm(count: int, positive: bool = False, axes: int = 2) -> nn.Module:
    """A norm with random statistics."""
    made: nn.Module = randomize(getattr(nn, f"BatchNorm{axes}d")(count))
    with torch.no_grad():
        if positive:
            made.weight.abs_()
    return made


def turned(made: nn.Module) -> nn.Module:
    """The same norm with one negative scale."""
    with torch.no_grad():
        made.weight[0] *= -1.0  # type: ignore[index]
    return made


def conv(reads: int, writes: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(reads, writes, size, padding=size // 2)


def as_tokens(self: Any, x: Tensor) -> Tensor:
    """A norm, and a linear layer on every position."""
    b, c, h, w = x.shape
    return self.fc(self.bn(x).view(b, c, h * w).transpose(1, 2))  # type: ignore[no-any-return]


AHEAD: dict[str, Callable[[], nn.Module]] = {
    "flatten": lambda: nn.Sequential(norm(2), nn.Dropout(), nn.Flatten(), nn.Linear(96, 4)),
    "pooling and flatten": lambda: nn.Sequential(norm(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
    "adaptive and flatten": lambda: nn.Sequential(norm(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4)),
    "view": lambda: Written(
        lambda s, x: (lambda y: s.fc(y.view(y.size(0), -1)))(s.bn(x)), bn=norm(2), fc=nn.Linear(96, 4)
    ),
    "view by the size of what came before": lambda: Written(
        lambda s, x: s.fc(s.bn(F.max_pool2d(torch.tanh(s.c(x)), 2)).view(x.size(0), -1)),
        c=conv(2, 2), bn=norm(2), fc=nn.Linear(24, 4),
    ),
    "tokens by a view": lambda: Written(
        as_tokens, bn=norm(2), fc=nn.Linear(2, 4),
    ),
    "channels last, joined positions": lambda: Written(
        lambda s, x: s.fc(s.bn(x).permute(0, 2, 3, 1).reshape(x.size(0), -1, 2)), bn=norm(2), fc=nn.Linear(2, 4)
    ),
    "channels last, flattened": lambda: Written(
        lambda s, x: s.fc(s.bn(x).permute(0, 2, 3, 1).flatten(1)), bn=norm(2), fc=nn.Linear(96, 4)
    ),
    "channels last": lambda: Written(lambda s, x: s.fc(s.bn(x).permute(0, 2, 3, 1)), bn=norm(2), fc=nn.Linear(2, 4)),
    "max pooling": lambda: nn.Sequential(norm(2, True), nn.MaxPool2d(2), nn.Conv2d(2, 3, 3)),
    "upsampling": lambda: nn.Sequential(norm(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(2, 3, 3)),
    "scale": lambda: Written(
        lambda s, x: s.fc((x * s.g).mean((2, 3))), g=nn.Parameter(torch.randn(2, 1, 1)), fc=nn.Linear(2, 4)
    ),
    "scale and shift": lambda: Written(
        lambda s, x: s.fc(F.adaptive_avg_pool2d(torch.tanh(s.c(x)) * s.g + s.b, 1).flatten(1)),
        c=conv(2, 2), g=nn.Parameter(torch.randn(2, 1, 1)), b=nn.Parameter(torch.randn(2, 1, 1)), fc=nn.Linear(2, 4),
    ),
    "scale, shift and norm": lambda: Written(
        lambda s, x: s.fc((s.bn(torch.tanh(s.c(x)) * s.g + s.b) * 0.5).flatten(1)),
        c=conv(2, 2), g=nn.Parameter(torch.randn(2, 1, 1)), b=nn.Parameter(torch.randn(2, 1, 1)),
        bn=norm(2), fc=nn.Linear(96, 4),
    ),
    "two readers": lambda: Written(
        lambda s, x: (lambda y: s.fc(y.mean((2, 3))).sum() + s.conv(F.max_pool2d(y, 2)))(s.bn(x)),
        bn=norm(2, True), fc=nn.Linear(2, 4), conv=nn.Conv2d(2, 3, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AHEAD)
def test_a_norm_in_front_of_a_passage_goes_into_the_layers_behind(name: str) -> None:
    x = torch.randn(3, 2, 8, 6, dtype=torch.float64)
    _, report = folded(AHEAD[name](), x)
    assert report.norms[1] == 0
    assert report.regions
    assert "distribute" in {rule for region in report.regions for rule in region.rules}


KEPT: dict[str, tuple[Callable[[], nn.Module], Code]] = {
    "negative scales": (
        lambda: nn.Sequential(turned(norm(2, True)), nn.MaxPool2d(2), nn.Conv2d(2, 3, 1)),
        Code.DISTRIBUTE,
    ),
    "padded layer": (lambda: nn.Sequential(norm(2), nn.Upsample(scale_factor=2), conv(2, 3)), Code.BORDER_BIAS),
    "other reader": (
        lambda: Written(
            lambda s, x: (lambda y: s.fc(y.mean((2, 3))).mean() + y)(s.bn(x)), bn=norm(2), fc=nn.Linear(2, 4)
        ),
        Code.DISTRIBUTE,
    ),
    "activation": (
        lambda: Written(lambda s, x: s.fc(s.bn(x).relu().mean((2, 3))), bn=norm(2), fc=nn.Linear(2, 4)),
        Code.NO_LAYER,
    ),
    "layer that is read": (
        lambda: Written(
            lambda s, x: (lambda y: s.bn(F.interpolate(y, scale_factor=2)).mean() + y)(s.c(x)), c=conv(2, 3), bn=norm(3)
        ),
        Code.READ_ELSEWHERE,
    ),
    "mixed channels": (
        lambda: Written(lambda s, x: s.bn(s.c(x).transpose(1, 2)), c=conv(2, 3), bn=norm(8)),
        Code.LAYOUT,
    ),
    "norm of features": (
        lambda: Written(lambda s, x: s.bn(s.c(x).flatten(1)), c=conv(2, 3), bn=norm(144, axes=1)),
        Code.CHANNELS,
    ),
    "a view that mixes channels": (
        lambda: Written(lambda s, x: s.bn(s.c(x).view(x.size(0), 6, 4, 6)), c=conv(2, 3), bn=norm(6)),
        Code.LAYOUT,
    ),
    "a view that mixes samples": (
        lambda: Written(lambda s, x: s.bn(s.c(x).view(4, 3, 4, 6)), c=conv(2, 3), bn=norm(3)),
        Code.LAYOUT,
    ),
    "features of a view with another batch": (
        lambda: Written(lambda s, x: s.fc(s.bn(x).reshape(-1, 24)), bn=norm(2), fc=nn.Linear(24, 3)),
        Code.NO_LAYER,
    ),
    "scale of an unknown number of axes": (
        lambda: Written(
            lambda s, x: s.bn(torch.relu(s.fc((x * s.g).flatten(1)))[:, :, None, None] ** 2),
            g=nn.Parameter(torch.randn(2, 1, 1)), fc=nn.Linear(96, 3), bn=norm(3),
        ),
        Code.RANK_UNKNOWN,
    ),
    "shuffled ahead": (
        lambda: Written(
            lambda s, x: s.c(F.pixel_shuffle(s.bn(torch.tanh(torch.cat([x, x], 1))), 2)),
            c=nn.Conv2d(1, 3, 1), bn=norm(4),
        ),
        Code.DISTRIBUTE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_the_law_does_not_allow_stays_and_says_why(name: str) -> None:
    build, code = KEPT[name]
    _, report = folded(build(), torch.randn(2, 2, 8, 6, dtype=torch.float64))
    assert report.norms == (1, 1)
    assert code in {r.code for r in report.refusals}, report.refusals


@pytest.mark.parametrize("shown", [True, False])
def test_a_decoder_that_joins_what_was_upsampled(shown: bool) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        low = s.a(F.max_pool2d(x, 2))
        return s.bn(torch.cat([F.interpolate(low, size=x.shape[-2:], mode="bilinear"), s.b(x)], 1))  # type: ignore[no-any-return]

    x = torch.randn(2, 2, 8, 6, dtype=torch.float64)
    model = Written(forward, a=conv(2, 3), b=conv(2, 4), bn=norm(7))
    _, report = folded(model, *((x,) if shown else ()), others=(x[:, :, 1:, 1:],))
    assert (report.norms, report.layers) == ((1, 0), (2, 2))


@pytest.mark.parametrize("readers", [1, 3])
def test_a_norm_between_transposes(readers: int) -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        y = s.bn(x.transpose(1, 2)).transpose(1, 2)
        return torch.cat([layer(y).relu() for layer in s.layers], -1)

    layers = nn.ModuleList(nn.Linear(6, 4) for _ in range(readers))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    _, report = folded(Written(forward, bn=norm(6, axes=1), layers=layers), x, others=(x[:, :2],))
    assert (report.norms, report.layers) == ((1, 0), (readers, readers))


def test_a_full_size_convolution_flattened_into_a_linear_layer() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, (4, 5)), nn.Flatten(), nn.Linear(6, 3), nn.BatchNorm1d(3))
    for shown in (True, False):
        x = torch.randn(2, 2, 4, 5, dtype=torch.float64)
        _, report = folded(model, *((x,) if shown else ()), others=(x,))
        assert (report.norms, report.layers) == ((1, 0), (2, 1))


def test_on_the_meta_device_what_depends_on_values_stays() -> None:
    model = nn.Sequential(conv(2, 3), nn.MaxPool2d(2), nn.BatchNorm2d(3)).eval().to("meta")
    assert reptool.explain(model, torch.empty(1, 2, 8, 8, device="meta")).norms == (1, 1)
