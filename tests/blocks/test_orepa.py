"""OREPA."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reptool.blocks import OREPA
from reptool.blocks._window import CONVOLVE as CONVOLVE_INSIDE
from reptool.errors import InputError
from tests.blocks.formulas import CONVOLVE, TOLERANCE, batch_norm
from tests.blocks.options import Option, orepa_options, randomize


def fixed_filters(out: int, size: int, dim: int) -> tuple[Tensor, Tensor]:
    """The average and the cosine filters."""
    average = torch.full((out, 1, *(size,) * dim), 1 / size**dim, dtype=torch.float64)
    prior = torch.empty(out, 1, *(size,) * dim, dtype=torch.float64)
    shares = [out // dim + (axis < out % dim) for axis in range(dim)]
    for axis, share in enumerate(shares):
        for i in range(share):
            for place in product(range(size), repeat=dim):
                wave = math.cos(math.pi * (place[axis] + 0.5) * (i + 1) / size)
                prior[(sum(shares[:axis]) + i, 0, *place)] = wave
    return average, prior


def branches(block: Any, x: Tensor, plain: Any) -> Tensor:
    """The scaled branches as layers of feature maps, which is what their kernels stand for."""
    block = block.conv
    pad, step, dil, g = plain.padding[0], plain.stride[0], plain.dilation[0], plain.groups
    dim = x.dim() - 2
    size = plain.kernel_size[0]
    x = F.pad(x, [pad] * 2 * dim)
    centre = dil * (size // 2)
    inner = x[(slice(None), slice(None), *(slice(centre, n - centre) for n in x.shape[2:]))]
    out = block.origin.shape[0]

    def conv(y: Tensor, weight: Tensor, groups: int, stride: int = 1, dilation: int = 1) -> Tensor:
        return CONVOLVE[dim](y, weight, stride=stride, dilation=dilation, groups=groups)

    full = {"stride": step, "dilation": dil}
    average, prior = block.average_filter.expand_as(block.prior_filter), block.prior_filter
    identity = torch.zeros_like(block.sequence_point)
    for t in range(identity.shape[0]):
        identity[t, t % identity.shape[1]] = 1
    point = (block.sequence_point + identity)[(..., *(None,) * dim)]
    terms = {
        "origin": conv(x, block.origin, g, **full),
        "average": conv(conv(x, block.average, g), average, out, **full),
        "prior": conv(conv(x, block.prior, g), prior, out, **full),
        "point": conv(inner, block.point, g, stride=step),
        "sequence": conv(conv(x, point, g), block.sequence, g, **full),
        "separable": conv(conv(x, block.separable, x.shape[1], **full), block.separable_point, g),
    }
    assert set(terms) == set(block.scales)
    return sum(
        (block.scales[n].reshape(1, -1, *(1,) * dim) * y for n, y in terms.items()), torch.zeros((), dtype=x.dtype)
    )


@pytest.mark.parametrize("option", list(orepa_options()), ids=lambda o: o.id)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_formula(option: Option, training: bool) -> None:
    block: Any = randomize(option.build(), seed=5).double().train(training)
    average, prior = fixed_filters(block.bn.num_features, block.conv.size, option.dim)
    torch.testing.assert_close(block.conv.average_filter.expand_as(average), average, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(block.conv.prior_filter, prior, rtol=1e-6, atol=1e-6)
    x = option.inputs()
    expected = block.activation(batch_norm(branches(block, x, option.plain()), block.bn, training))
    torch.testing.assert_close(block(x), expected, **TOLERANCE)


def test_single_init_starts_with_the_origin_alone() -> None:
    conv = OREPA(4, 8, single_init=True).conv
    assert torch.equal(conv.weight(), conv.origin)


def test_one_convolution_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    convolve = CONVOLVE_INSIDE[2]

    def counted(x: Tensor, *arguments: Any) -> Tensor:
        calls.append(x.shape)
        return convolve(x, *arguments)

    monkeypatch.setitem(CONVOLVE_INSIDE, 2, counted)
    OREPA(4, 8)(torch.randn(2, 4, 7, 7))
    assert calls == [(2, 4, 7, 7)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 1}, "from 3 on"),
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": (3, 5)}, "from 3 on"),
        ({"groups": 3}, "divisor of 8"),
        ({"groups": 2, "internal_channels": 5}, "internal_channels=4"),
        ({"expansion": 0}, "expansion=0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OREPA(8, 8, **arguments)
