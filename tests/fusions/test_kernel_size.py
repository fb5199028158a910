"""Kernels of different sizes, dilations and paddings on one lattice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import align_kernels, branch_add
from reptool.fusions.kernel_size import common_lattice, embed_on, embed_taps

Taps = tuple[int, int, int]

taps = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(-3, 6))


def positions(size: int, dilation: int, before: int) -> set[int]:
    return {dilation * k - before for k in range(size)}


@given(st.lists(taps, min_size=1, max_size=4))
def test_the_lattice_is_the_coarsest_that_holds_every_tap(several: list[Taps]) -> None:
    union = set().union(*(positions(*t) for t in several))
    size, step, before = common_lattice(several)
    held = positions(size, step, before)
    assert union <= held
    assert (min(held), max(held)) == (min(union), max(union))
    for coarser in range(step + 1, 40):
        assert any((p - min(union)) % coarser for p in union) or len(union) == 1


@given(st.lists(st.tuples(taps, taps), min_size=2, max_size=3), st.integers(1, 3))
def test_embedding_keeps_every_tap_where_it_is(rows: list[tuple[Taps, Taps]], channels: int) -> None:
    lattice = [common_lattice([row[axis] for row in rows]) for axis in (0, 1)]
    for row in rows:
        weight = torch.randn(2, channels, row[0][0], row[1][0])
        kept = weight.clone()
        wide = embed_on(weight, row, lattice)
        assert wide.shape[2:] == (lattice[0][0], lattice[1][0])
        found = {
            (i * lattice[0][1] - lattice[0][2], j * lattice[1][1] - lattice[1][2]): wide[:, :, i, j]
            for i in range(wide.shape[2])
            for j in range(wide.shape[3])
        }
        for i in range(row[0][0]):
            for j in range(row[1][0]):
                place = (i * row[0][1] - row[0][2], j * row[1][1] - row[1][2])
                assert torch.equal(found.pop(place), weight[:, :, i, j])
        assert not any(rest.any() for rest in found.values())
        wide.zero_()
        assert torch.equal(weight, kept)


@given(st.data(), st.integers(1, 3), st.sampled_from([1, 2]))
def test_aligned_kernels_sum_to_the_sum_of_the_layers(data: st.DataObject, count: int, groups: int) -> None:
    weights, paddings, dilations, layers = [], [], [], []
    x = torch.randn(2, 2, *(12, 11, 10)[:count], dtype=torch.float64)
    conv = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    extent = [data.draw(st.integers(-4, 2)) for _ in range(count)]
    for _ in range(data.draw(st.integers(1, 3))):
        dilation = [data.draw(st.integers(1, 3)) for _ in range(count)]
        size = [data.draw(st.integers(1, 3 if count < 3 else 2)) for _ in range(count)]
        for axis in range(count):  # the total padding must be even, as that of a symmetric layer is
            if (extent[axis] + dilation[axis] * (size[axis] - 1)) % 2:
                dilation[axis], size[axis] = (1, 2) if extent[axis] % 2 else (1, 1)
        padding = [(t + d * (k - 1)) // 2 for t, d, k in zip(extent, dilation, size, strict=True)]
        weight = torch.randn(4, 2 // groups, *size, dtype=torch.float64)
        pads = [p for pad in reversed(padding) for p in (pad, pad)]
        layers.append(conv(F.pad(x, pads), weight, None, 1, 0, dilation, groups))
        weights.append(weight)
        paddings.append(padding)
        dilations.append(dilation)
    kept = [w.clone() for w in weights]
    aligned, before, step = align_kernels(weights, paddings, dilations)
    assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True))
    weight, _ = branch_add(aligned, [None] * len(aligned))
    pads = [p for pad in reversed(before) for p in (pad, pad)]
    merged = conv(F.pad(x, pads), weight, None, 1, 0, step, groups)
    torch.testing.assert_close(merged, torch.stack(layers).sum(0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_embedding_is_exact_in_any_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(2, 1, 2, 1).to(dtype)
    wide = embed_taps(weight, [5, 3], [1, 2], [3, 1])
    assert wide.dtype == dtype
    assert torch.equal(wide[:, :, 1::3, 2:], weight)
    assert wide.count_nonzero() == weight.count_nonzero()


@pytest.mark.parametrize(
    ("weights", "paddings", "dilations", "message"),
    [
        ([], [], None, "0 weights"),
        ([torch.ones(1, 1, 3)], [], None, "1 weights, 0 paddings"),
        ([torch.ones(1, 1, 3)], [[1]], [[1], [1]], "2 dilations"),
        ([torch.ones(1, 1, 3), torch.ones(1, 1, 1)], [[0], [0]], None, "different sizes"),
        ([torch.ones(1, 1, 2), torch.ones(1, 1, 1)], [[1], [0]], None, "different sizes"),
    ],
)
def test_bad_input_is_an_error(
    weights: list[Tensor], paddings: list[list[int]], dilations: list[list[int]] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        align_kernels(weights, paddings, dilations)
