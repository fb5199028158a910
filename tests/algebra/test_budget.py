"""What a layer and its check would take is known before anything is made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reptool
from reptool import Code
from reptool.algebra.budget import BYTES, check_bytes, is_out_of_memory, smallest_size, too_large, weight_bytes
from reptool.algebra.kernel import Axis, Channels, Kernel
from tests.traps import assert_same, image, ready


def shape(size: int, channels: int = 4, groups: int = 1, padding: int = 0) -> Kernel:
    """The shape of a square convolution."""
    axis = Axis(size, before=padding, after=padding)
    return Kernel(Channels.grouped(channels, channels, groups), (axis, axis))


def test_bytes_of_a_weight() -> None:
    layer = nn.Conv2d(8, 8, 5, groups=2).double()
    assert weight_bytes(shape(5, 8, 2)) == layer.weight.numel() * 8
    assert weight_bytes(Kernel(Channels.grouped(6, 5), ())) == 6 * 5 * 8


def test_bytes_of_a_check() -> None:
    unfolded = torch.nn.functional.unfold(torch.zeros(2, 4, 11, 12, dtype=torch.float64), 5)
    assert check_bytes(shape(5), (11, 12), 2) == unfolded.numel() * 8


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(-2, 9), st.integers(-2, 9))
def test_on_the_smallest_size_every_tap_reads_the_image_and_is_at_its_borders(
    taps: int, stride: int, dilation: int, before: int, after: int
) -> None:
    axis = Axis(taps, stride, dilation, before=before, after=after)
    (size,) = smallest_size((axis,))
    positions = range(axis.out_size(size))
    for tap in range(taps):
        reads = [p * stride + tap * dilation - before for p in positions]
        assert any(0 <= r < size for r in reads)
        left, right = before - tap * dilation, after - (taps - 1 - tap) * dilation
        assert left <= 0 or any(r < 0 for r in reads)
        assert right < stride or any(r >= size for r in reads)


def test_a_kernel_that_is_as_wide_as_its_padding_is_checked_on_a_small_image() -> None:
    wide = Kernel(Channels.grouped(2048, 256), (Axis(3, 1, 36, 36, 36),) * 2)
    assert smallest_size(wide.axes or ()) == (38, 38)
    assert too_large(wide, weight_bytes(wide)) is None


def test_what_is_as_large_as_before_is_not_too_large() -> None:
    wide = Kernel(Channels.grouped(20_000, 20_000), ())
    assert weight_bytes(wide) > BYTES
    assert too_large(wide, weight_bytes(wide)) is None
    refusal = too_large(wide, 8)
    assert refusal is not None
    assert refusal.code is Code.TOO_LARGE
    assert "3.2 GB" in refusal.sentence


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.AvgPool2d(301, 1, 150), nn.Conv2d(3, 4, 1)),
        lambda: nn.Sequential(nn.AvgPool2d(3001, 1, 1500), nn.Conv2d(3, 4, 1, bias=False)),
        lambda: Sum(nn.Conv2d(3, 4, 3, padding=100, dilation=100), nn.Conv2d(3, 4, 3, padding=1)),
        lambda: Sum(nn.Conv2d(3, 4, 3, padding=5000, dilation=5000), nn.Conv2d(3, 4, 3, padding=1)),
    ],
)
def test_force_makes_no_layer_that_does_not_fit(build: object) -> None:
    model = ready(build())  # type: ignore[operator]
    deployed = reptool.deploy(model, force=True)
    report = reptool.report(deployed)
    assert {r.code for r in report.refusals} == {Code.TOO_LARGE}
    assert not report.regions
    assert_same(model(image()), deployed(image()))


class Sum(nn.Module):
    """The sum of two branches."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)  # type: ignore[no-any-return]


def test_errors_for_memory_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
