"""Layers of several resolutions, and pointwise layers where positions are fewest, out of graphs that have no code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

import reptool
from reptool.errors import VerificationError
from reptool.programs import layers
from reptool.testing import randomize
from tests.fuzz_programs import FRONT_ENDS, _error, _run
from tests.plan.resolutions.test_joined import Alone, Block, Decoder, First, Nested, Thrice, deploy, images


class Around(nn.Module):
    """A pointwise layer with a norm, and what moves positions."""

    def __init__(self, first: nn.Module, then: nn.Module, norm: bool = True) -> None:
        super().__init__()
        self.first, self.then, self.norm = first, then, nn.BatchNorm2d(16) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.then(self.first(x.relu()))).sigmoid()


def conv() -> nn.Module:
    return nn.Conv2d(8, 16, 1)


JOINED: dict[str, Callable[[], nn.Module]] = {
    "beside a skip connection": Decoder, "behind it": First, "two of one resolution": Thrice,
    "nearest-exact": lambda: Decoder(mode="nearest-exact"), "no padding": lambda: Decoder(padding=0),
    "a dilation": lambda: Decoder(padding=2, dilation=2), "in a module of its own": lambda: Nested(Block()),
    "wide": lambda: Decoder(factor=(4, 4), width=64),
}  # fmt: skip
AROUND: dict[str, Callable[[], nn.Module]] = {
    "average pooling behind": lambda: Around(conv(), nn.AvgPool2d(3)),
    "adaptive pooling": lambda: Around(conv(), nn.AdaptiveAvgPool2d((3, 4))),
    "nearest upsampling in front": lambda: Around(nn.Upsample(scale_factor=4), conv(), False),
    "bilinear upsampling in front": lambda: Around(nn.Upsample(scale_factor=3, mode="bilinear"), conv()),
    "two in front": lambda: Around(
        nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=1.5)), conv()
    ),
    "one on each side": lambda: Around(
        nn.Sequential(nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True), conv()), nn.AvgPool2d(4)
    ),
}  # fmt: skip
UNKNOWN = {("nearest-exact", "core"), ("nearest-exact", "onnx"), ("two of one resolution", "onnx")}
"""What is taken apart by index there, has no operator, or stands behind one that nothing is known of."""


def through(kind: str, model: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, float]:
    """A model through a front end, collapsed, and how far it is off."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    else:
        model, args = model.double(), tuple(a.double() for a in args)
    program = FRONT_ENDS[kind](model, args)
    made = deploy(program, args) if kind == "module" else deploy(program)
    return made, _error(_run(made, args), _run(program, args))


@pytest.mark.parametrize("kind", ["training", "core", "onnx"])
@pytest.mark.parametrize("name", JOINED)
def test_one_layer_for_each_resolution(name: str, kind: str) -> None:
    if (name, kind) in UNKNOWN:
        pytest.skip("it is not read there")
    torch.manual_seed(0)
    made, error = through(kind, randomize(JOINED[name]()).eval(), images(factor=4 if name == "wide" else 2))
    (region,) = reptool.report(made).regions
    assert error <= (2e-4 if kind == "onnx" else 1e-10)
    assert "upsample" in region.rules
    assert region.multiplications[1] <= region.multiplications[0]
    assert reptool.report(made).layers == (1, 2)
    assert reptool.report(made).norms[1] == 0


@pytest.mark.parametrize("kind", ["training", "core", "onnx"])
@pytest.mark.parametrize("name", AROUND)
def test_pointwise_where_positions_are_fewest(name: str, kind: str) -> None:
    torch.manual_seed(0)
    made, error = through(kind, randomize(AROUND[name]()).eval(), (torch.randn(2, 8, 24, 20),))
    (region,) = reptool.report(made).regions
    assert error <= (2e-4 if kind == "onnx" else 1e-10)
    assert name.startswith(("average", "nearest")) or "resample" in region.rules
    assert reptool.report(made).norms[1] == 0


class Told(nn.Module):
    """Upsampling that is told its size."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor, self.conv = factor, nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.relu()
        return self.conv(F.interpolate(y, size=(y.shape[2] * self.factor, y.shape[3] * 2))).relu()


class Skip(Alone):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 6, 5, padding=2)


def test_a_told_size_that_is_a_multiple_at_every_call() -> None:
    image = torch.randn(2, 8, 12, 10)
    program = export(Told().eval(), (image,), dynamic_shapes=({2: Dim("h", min=2), 3: Dim("w", min=2)},))
    made = deploy(program)
    assert "upsample" in reptool.report(made).regions[0].rules
    for size in ((12, 10), (7, 5)):
        other = torch.randn(2, 8, *size)
        torch.testing.assert_close(made.module()(other), program.module()(other), rtol=1e-4, atol=1e-5)


def test_a_told_size_that_is_another_multiple_at_the_next_call_stays() -> None:
    low, high = images()
    free = {2: Dim("h", min=2), 3: Dim("w", min=2)}
    program = export(Skip().eval(), (low, high), dynamic_shapes=(free, {2: Dim("k", min=2), 3: Dim("v", min=2)}))
    made = deploy(program)
    assert all("upsample" not in r.rules for r in reptool.report(made).regions)
    other = torch.randn(2, 8, 24, 20), torch.randn(2, 4, 72, 60)
    torch.testing.assert_close(made.module()(*other), program.module()(*other), rtol=1e-4, atol=1e-5)


def test_a_graph_that_checks_no_sizes_keeps_what_is_told_numbers() -> None:
    class Fixed(Told):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.interpolate(x.relu(), size=(24, 20))).relu()

    image = torch.randn(2, 8, 12, 10)
    program = export(Fixed().eval(), (image,))
    assert "upsample" in reptool.report(deploy(program)).regions[0].rules
    assert not reptool.report(deploy(program.module(), (image,))).regions


@pytest.mark.parametrize("wrong", ["order", "piece", "place"])
def test_what_is_wrong_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resampling that is lost, columns of another part, and a layer on the wrong side of it are noticed."""
    pieces, moving = layers.Layers._pieces, layers.moving_in

    def other(self: Any, *args: Any) -> list[layers.Piece]:
        made = pieces(self, *args)
        return made[:1] if wrong == "piece" else made

    def lost(*args: Any) -> tuple[Any, ...]:
        found = moving(*args)
        return found[1:] if wrong == "order" else (*found, *found[:1])

    monkeypatch.setattr(layers.Layers, "_pieces", other)
    if wrong != "piece":
        monkeypatch.setattr(layers, "moving_in", lost)
    torch.manual_seed(0)
    model, args = (
        (Decoder(), images()) if wrong == "piece" else (AROUND["bilinear upsampling in front"](), images()[:1])
    )
    model, args = randomize(model).eval().double(), tuple(a.double() for a in args)
    with pytest.raises((VerificationError, RuntimeError)):
        deploy(export(model, args))
