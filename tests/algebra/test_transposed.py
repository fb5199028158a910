"""Parallel transposed convolutions and convolutions behind one, against torch's own in float64."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reptool.algebra.compose import compose
from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.laws import add, concat
from reptool.refusal import Code, Refusal
from reptool.testing import apply_kernel

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


# --- convolutions behind a transposed one ---------------------------------------------------------------------------
def applied(k: Kernel, x: Tensor) -> Tensor:
    """What a kernel gives, transposed or not."""
    return apply_kernel(k, x) if k.transposed is None else run(k, x)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Kernel, Kernel, Tensor]:
    """A transposed convolution, a convolution behind it that may crop, stride and pad, and an image."""
    axes, groups, behind = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2))), draw(st.sampled_from((1, 2)))
    small = st.integers(1, 2 if axes == 3 else 4)
    along: list[Along] = []
    second: list[Axis] = []
    for _ in range(axes):
        s, d = draw(st.sampled_from((1, 2, 2, 3, 4, 5))), draw(st.sampled_from((1, 1, 2, 3)))
        if draw(st.booleans()):
            along.append((s, s, 0, 0, 1))
        else:
            along.append((draw(small), s, draw(st.integers(0, 2)), draw(st.integers(0, max(s, d) - 1)), d))
        k, t, e = draw(small), draw(st.sampled_from((1, 1, 1, s, 2, 2 * s))), draw(st.sampled_from((1, 1, 2, 3)))
        second.append(Axis(k, t, e, draw(st.integers(-2, 4)), draw(st.integers(-2, 4))))
    first = (
        replace(kernel(groups, along), biased=False, bias=None) if draw(st.integers(0, 3)) else kernel(groups, along)
    )
    if draw(st.booleans()):  # nearest upsampling and its like: the same on every channel
        weight = torch.randn(1, 1, *(a[0] for a in along), dtype=torch.float64)
        first = Kernel(None, first.axes, weight, transposed=first.transposed)
    reads = first.out_channels or READ
    rows = torch.randn(6, reads // behind, *(a.kernel_size for a in second), dtype=torch.float64)
    g = Kernel(Channels.grouped(reads, 6, behind), tuple(second), rows, torch.randn(6, dtype=torch.float64), True)
    sizes = [draw(st.integers(1, 9 if axes == 1 else 4)) for _ in range(axes)]
    return g, first, torch.randn(draw(st.sampled_from((0, 1, 2))), READ, *sizes, dtype=torch.float64)


def two_runs(g: Kernel, f: Kernel, x: Tensor) -> Tensor | None:
    """One after the other; None where nothing is left."""
    f = f if f.channels is not None else f.with_channels(READ)
    try:
        wanted = apply_kernel(g, run(f, x))
    except RuntimeError:
        return None
    return wanted if all(n > 0 for n in wanted.shape[2:]) else None


SEEN: Counter[str] = Counter()


@settings(max_examples=600, deadline=None, derandomize=True)
@given(pairs())
def compared(pair: tuple[Kernel, Kernel, Tensor]) -> None:
    g, f, x = pair
    made = compose(g, f)
    shape = compose(g.shape_only(), f.shape_only())
    if isinstance(made, Refusal):
        SEEN[made.code.value] += 1
        assert isinstance(shape, Refusal)
        return
    assert isinstance(shape, Kernel)
    assert (shape.axes, shape.transposed, shape.channels) == (made.axes, made.transposed, made.channels)
    wanted = two_runs(g, f, x)
    if wanted is None:
        return
    SEEN["transposed" if made.transposed else "plain"] += 1
    torch.testing.assert_close(applied(made, x), wanted, rtol=1e-10, atol=1e-10)
    if made.transposed is not None:
        _, stride, padding, extra, dilation = made.transposed
        assert all(p >= 0 for p in padding)
        assert all(0 <= e < max(s, d) for e, s, d in zip(extra, stride, dilation, strict=True))


def test_convolutions_behind() -> None:
    SEEN.clear()
    compared()
    assert min(SEEN[k] for k in ("transposed", "plain", "border-read", "border-bias", "stride")) > 10, SEEN


def test_what_is_refused_is_wrong() -> None:
    """Without the condition on the border, padding, bias and crop are seen to matter."""
    x = torch.randn(1, READ, 5, dtype=torch.float64)
    g = Kernel(Channels.grouped(WRITTEN, 4), (Axis(3, 1, 1, 1, 1),), torch.randn(4, WRITTEN, 3, dtype=torch.float64))
    cropped = replace(kernel(1, [(4, 2, 1, 0, 1)]), biased=False, bias=None)
    biased = kernel(1, [(2, 2, 0, 0, 1)])
    for f, code in ((cropped, Code.BORDER_READ), (biased, Code.BORDER_BIAS)):
        found = compose(g, f)
        assert isinstance(found, Refusal)
        assert found.code is code
        inner = compose(replace(g, axes=(Axis(3),)), f)
        assert isinstance(inner, Kernel)
        assert inner.transposed is not None
        padded = replace(
            inner, transposed=(*inner.transposed[:2], (inner.transposed[2][0] - 1,), *inner.transposed[3:])
        )
        wanted = two_runs(g, f, x)
        assert wanted is not None
        assert run(padded, x).shape == wanted.shape
        assert (run(padded, x) - wanted).abs().max() > 1e-3


def test_three_taps_behind_two_are_four() -> None:
    up = Kernel(None, (Axis(2, border=Border.UNKNOWN),) * 2, transposed=((2, 2), (2, 2), (0, 0), (0, 0), (1, 1)))
    conv = Kernel(Channels.grouped(4, 4), (Axis(3, 1, 1, 1, 1),) * 2)
    found = compose(conv, up)
    assert isinstance(found, Kernel)
    assert found.transposed == ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1))
    back = compose(replace(conv, axes=(Axis(3, 2, 1, 1, 1),) * 2), up)
    assert isinstance(back, Kernel)
    assert back.transposed is None
    assert back.axes == (Axis(2, 1, 1, 1, 0),) * 2


@pytest.mark.parametrize("mode", [Border.REFLECT, Border.REPLICATE, Border.CIRCULAR])
def test_other_borders_are_refused(mode: Border) -> None:
    conv = Kernel(Channels.grouped(WRITTEN, 4), (Axis(3, 1, 1, 1, 1, mode),))
    found = compose(conv, replace(kernel(1, [(2, 2, 0, 0, 1)]), biased=False, bias=None))
    assert isinstance(found, Refusal)
    assert found.code is Code.BORDER_MODE
