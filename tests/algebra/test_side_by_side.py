"""A kernel over values of several resolutions as one for each, against upsampling, concatenation and convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.side_by_side import Part, kernel_of_each, parts_of, repeating, upsampling
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import arranged, geometry, new_layer

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def upsampled(x: Tensor, factors: tuple[int, ...]) -> Tensor:
    for i, f in enumerate(factors):
        x = x.repeat_interleave(f, i + 2)
    return x


def summed(whole: Kernel, kernels: list[Kernel], parts: tuple[Part, ...], values: list[Tensor]) -> Tensor:
    out = []
    for kernel, part in zip(kernels, parts, strict=True):
        shape = geometry(kernel)
        assert not isinstance(shape, Refusal)
        made = new_layer(shape, *arranged(kernel))(torch.cat([values[i] for i in part.which], 1))
        out.append(made if upsampling(whole, part) is None else upsampled(made, part.factors))
    return torch.stack(out).sum(0).detach()


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.data())
def test_the_sum_of_all_is_the_whole(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    most = 4 if axes < 3 else 2
    factors = [
        tuple(data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes)))
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    widths = [data.draw(st.integers(1, 3)) for _ in factors]
    geometry_of = [
        Axis(data.draw(st.integers(1, most)), 1, data.draw(st.integers(1, 2)), data.draw(st.integers(0, 3)),
             data.draw(st.integers(0, 3)))
        for _ in range(axes)
    ]  # fmt: skip
    base = [data.draw(st.integers(1, 3 if axes < 3 else 2)) for _ in range(axes)]
    weight = torch.randn(3, sum(widths), *(a.kernel_size for a in geometry_of), dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64)
    kernel = Kernel(Channels.grouped(sum(widths), 3), tuple(geometry_of), weight, bias, True)
    parts = parts_of(factors, widths)
    values = [
        torch.randn(2, w, *(6 * n // f for n, f in zip(base, own, strict=True)), dtype=torch.float64)
        for w, own in zip(widths, factors, strict=True)
    ]
    whole = torch.cat([upsampled(v, f) for v, f in zip(values, factors, strict=True)], 1)
    padded = F.pad(whole, [p for a in reversed(geometry_of) for p in (a.before, a.after)])
    if any(a.out_size(n) < 1 for a, n in zip(geometry_of, whole.shape[2:], strict=True)):
        return
    made = kernel_of_each(kernel, parts)
    assert not isinstance(made, Refusal)
    shapes = kernel_of_each(kernel.shape_only(), parts)
    assert not isinstance(shapes, Refusal)
    assert [(s.axes, s.transposed) for s in shapes] == [(m.axes, m.transposed) for m in made]
    wanted = CONV[axes](padded, weight, bias, dilation=[a.dilation for a in geometry_of])
    torch.testing.assert_close(summed(kernel, made, parts, values), wanted, rtol=1e-10, atol=1e-10)


def planted(kernels: list[Kernel]) -> dict[str, list[Kernel]]:
    """What would be wrong: of the first part two phases swapped, a border off by one, its bias in the others too."""
    low, high = kernels
    assert low.weight is not None
    assert low.transposed is not None
    size, stride, (pad, _), extra, dilation = low.transposed
    moved = (size, stride, (pad + 1, pad - 1), extra, dilation)
    return {
        "phases": [replace(low, weight=low.weight[..., [1, 0, 3, 2]]), high],
        "border": [replace(low, transposed=moved), high],
        "bias": [low, replace(high, bias=low.bias, biased=True)],
        "columns": [replace(low, weight=low.weight.flip(1)), high],
    }


@pytest.mark.parametrize("what", ["phases", "border", "bias", "columns"])
def test_wrong_ones_differ(what: str) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 5, 3, 3).double(), torch.randn(3).double()
    kernel = Kernel(Channels.grouped(5, 3), (Axis(3, 1, 1, 1, 1),) * 2, weight, bias, True)
    parts = parts_of([(2, 2), (1, 1)], [2, 3])
    values = [torch.randn(1, 2, 4, 5).double(), torch.randn(1, 3, 8, 10).double()]
    wanted = F.conv2d(torch.cat([upsampled(values[0], (2, 2)), values[1]], 1), weight, bias, padding=1)
    made = kernel_of_each(kernel, parts)
    assert not isinstance(made, Refusal)
    torch.testing.assert_close(summed(kernel, made, parts, values), wanted)
    try:
        got = summed(kernel, planted(made)[what], parts, values)
    except RuntimeError:  # of another size
        return
    assert got.shape != wanted.shape or float((got - wanted).abs().max()) > 0.1


@pytest.mark.parametrize(("change", "code"), [
    ({"channels": Channels.grouped(4, 4, 2)}, Code.CHANNELS),
    ({"channels": None}, Code.CHANNELS),
    ({"axes": ()}, Code.BORDER_UNKNOWN),
    ({"axes": (Axis(3, 1, 1, 1, 1, Border.REFLECT),) * 2}, Code.BORDER_MODE),
    ({"axes": (Axis(3, 1, 1, 1, 1, Border.UNKNOWN),) * 2}, Code.BORDER_UNKNOWN),
    ({"axes": (Axis(3, 3, 1, 1, 1),) * 2}, Code.STRIDE),
])  # fmt: skip
def test_refused(change: dict[str, Any], code: Code) -> None:
    kernel = replace(Kernel(Channels.grouped(4, 4), (Axis(3, 1, 1, 1, 1),) * 2), **change)
    found = kernel_of_each(kernel, parts_of([(2, 2), (1, 1)], [2, 2]))
    assert isinstance(found, Refusal)
    assert found.code is code


def test_what_repeats() -> None:
    kernel = repeating((3, 2))
    assert kernel.transposed == ((3, 2), (3, 2), (0, 0), (0, 0), (1, 1))
    assert [p.is_high for p in parts_of([(1, 1), (1, 2)], [1, 1])] == [True, False]
