"""Parallel transposed convolutions of different kernels, against torch's own in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.laws import add, concat
from reptool.refusal import Code, Refusal

FUNCTIONS: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
READ, WRITTEN = 4, 6


def kernel(groups: int, along: list[tuple[int, int, int, int, int]]) -> Kernel:
    size = tuple(a[0] for a in along)
    weight = torch.randn(WRITTEN, READ // groups, *size, dtype=torch.float64)
    axes = tuple(Axis(k, 1, 1, 0, 0, Border.UNKNOWN) for k in size)
    bias = torch.randn(WRITTEN, dtype=torch.float64)
    return Kernel(
        Channels.grouped(READ, WRITTEN, groups), axes, weight, bias, True, transposed=tuple(zip(*along, strict=True))
    )


def run(k: Kernel, x: Tensor) -> Tensor:
    """The transposed convolution that a kernel stands for."""
    assert k.transposed is not None
    assert k.channels is not None
    _, stride, padding, output_padding, dilation = k.transposed
    groups = k.channels.groups
    w = k.grouped_weight()
    w = w.reshape(groups, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape[1] * groups, -1, *w.shape[2:])
    out = FUNCTIONS[len(stride)](x, w, k.bias, stride, padding, output_padding, groups, dilation)
    assert isinstance(out, Tensor)
    return out


Along = tuple[int, int, int, int, int]


def end(along: Along) -> int:
    size, _, padding, extra, dilation = along
    return dilation * (size - 1) - 2 * padding + extra


def axis(draw: random.Random, stride: int) -> Along:
    dilation = draw.choice([1, 1, 2, 3])
    return draw.randint(1, 5), stride, draw.randint(0, 3), draw.randrange(max(stride, dilation)), dilation


def like(draw: random.Random, first: Along) -> Along:
    """Another geometry along an axis, mostly one that writes as many positions."""
    made = axis(draw, first[1])
    while end(made) != end(first) and draw.random() < 0.98:
        made = axis(draw, first[1])
    return made


def drawn(draw: random.Random, axes: int) -> tuple[list[Kernel], bool]:
    """Two or three kernels of one stride, and whether their outputs are always of one size."""
    first = [axis(draw, draw.choice([1, 2, 2, 3, 4])) for _ in range(axes)]
    each = [first, *([like(draw, a) for a in first] for _ in range(draw.choice([1, 1, 2])))]
    same = all(end(a) == end(b) for along in each for a, b in zip(along, first, strict=True))
    return [kernel(draw.choice([1, 2]), along) for along in each], same


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_sums_and_concatenations(axes: int) -> None:
    draw, seen = random.Random(axes), 0
    torch.manual_seed(axes)
    for _ in range(300):
        kernels, same = drawn(draw, axes)
        whole = add(kernels)
        assert isinstance(whole, Kernel) == same
        if isinstance(whole, Refusal):
            assert whole.code is Code.EXTENT
            continue
        seen += 1
        assert whole.transposed is not None
        size, stride, _, output_padding, dilation = whole.transposed
        assert all(0 <= e < max(s, d) for e, s, d in zip(output_padding, stride, dilation, strict=True))
        assert size == tuple(a.kernel_size for a in whole.axes or ())
        for extent in ((4, 5, 3), (1, 2, 1), (6, 1, 2)):
            x = torch.randn(2, READ, *extent[:axes], dtype=torch.float64)
            try:
                parts = [run(k, x) for k in kernels]
            except RuntimeError:  # nothing is left at this size
                with pytest.raises(RuntimeError):
                    run(whole, x)
                continue
            torch.testing.assert_close(run(whole, x), sum(parts), rtol=1e-10, atol=1e-10)
            both = concat(kernels)
            assert isinstance(both, Kernel)
            torch.testing.assert_close(run(both, x), torch.cat(parts, 1), rtol=1e-10, atol=1e-10)
        if seen > 60:
            break
    assert seen > 20


def test_a_pair_of_decoders_is_one_kernel_of_four() -> None:
    whole = add([kernel(1, [(2, 2, 0, 0, 1)]), kernel(1, [(4, 2, 1, 0, 1)])])
    assert isinstance(whole, Kernel)
    assert whole.transposed == ((4,), (2,), (1,), (0,), (1,))


@pytest.mark.parametrize(("other", "code"), [
    (kernel(1, [(3, 3, 0, 0, 1)]), Code.STRIDE),
    (kernel(1, [(3, 2, 0, 0, 1)]), Code.EXTENT),
    (Kernel(Channels.grouped(READ, WRITTEN), (Axis(3, 1, 1, 1, 1),)), Code.BORDER_UNKNOWN),
])  # fmt: skip
def test_refused(other: Kernel, code: Code) -> None:
    found = add([kernel(1, [(2, 2, 0, 0, 1)]), other])
    assert isinstance(found, Refusal)
    assert found.code is code
