"""The price of layers, counted."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import reptool
from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.errors import InputError
from reptool.plan.cost import (
    DEFAULT,
    Costs,
    Price,
    is_depthwise,
    layer_price,
    needs_outer_padding,
    out_size,
)


def counted(layer: nn.Module, *shape: int) -> tuple[int, int]:
    """Multiplications of a layer, and the elements of its output."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = layer(torch.zeros(shape))
    return counter.get_total_flops() // 2, out.numel()


@given(
    st.sampled_from([1, 2, 3]),
    st.sampled_from([(6, 4, 1), (6, 4, 2), (6, 6, 6), (1, 5, 1)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(5, 9),
)
def test_the_price_of_a_convolution_is_what_it_executes(
    axes: int, channels: tuple[int, int, int], tap: int, stride: int, padding: int, size: int
) -> None:
    reads, writes, groups = channels
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](reads, writes, tap, stride, padding, groups=groups)
    kernel = Kernel(Channels.grouped(reads, writes, groups), (Axis(tap, stride, 1, padding, padding),) * axes)
    price = layer_price(kernel, (size,) * axes)
    multiplications, written = counted(layer, 1, reads, *[size] * axes)
    depthwise = groups == reads == writes > 1
    assert (price.multiplications, price.layers, price.others) == (multiplications, 1, 0)
    assert price.mixing == (0 if depthwise else multiplications)
    assert is_depthwise(kernel) == depthwise
    assert price.weights == layer.weight.numel()
    assert prod(out_size(kernel, (size,) * axes)) * writes == written
    moved = reads * size**axes + written
    rows = writes // groups
    executed = 1.1 * multiplications if depthwise else multiplications * -(-rows // 16) * 16 / rows
    executed += 155e3 * reads if depthwise and tap == 1 else 0
    assert price.total == pytest.approx(executed + 9 * moved + 16 * layer.weight.numel() + 3.5e6)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("along", [(2, 2, 0, 0, 1), (4, 2, 1, 0, 1), (3, 3, 2, 1, 2), (5, 1, 2, 0, 1)])
def test_a_transposed_convolution_multiplies_where_it_reads(along: tuple[int, int, int, int, int], groups: int) -> None:
    size, stride, padding, extra, dilation = along
    layer = nn.ConvTranspose2d(6, 6, size, stride, padding, extra, groups, True, dilation)
    key = tuple((v,) * 2 for v in along)
    kernel = Kernel(Channels.grouped(6, 6, groups), (Axis(size, border=Border.UNKNOWN),) * 2, transposed=key)
    price = layer_price(kernel, (7, 7))
    with torch.no_grad():
        written = layer(torch.zeros(1, 6, 7, 7)).shape[2:]
    assert price.multiplications == 6 * 6 // groups * size**2 * 49
    assert out_size(kernel, (7, 7)) == tuple(written)
    assert price.weights == layer.weight.numel()


def test_the_price_of_a_linear_layer_at_one_position() -> None:
    price = layer_price(Kernel(Channels.grouped(6, 4, 1), ()), ())
    assert price == Price(24 + 9 * 10 + 16 * 24 + 3.5e6, 24, 24, 1, 24, 0)


@pytest.mark.parametrize(
    ("axes", "needed"),
    [
        ([Axis(3, before=1, after=1)], False),
        ([Axis(3, before=1, after=0)], True),
        ([Axis(2, before=1, after=1)], False),
        ([Axis(2, before=1, after=0, border=Border.REFLECT)], True),
        ([Axis(3, before=-1, after=-1)], True),
        ([Axis(4, before=1, after=2)], False),  # padding="same" pads more behind
        ([Axis(4, before=2, after=1)], True),
    ],
)
def test_a_padding_that_no_layer_does_costs_an_operation(axes: Sequence[Axis], needed: bool) -> None:
    assert needs_outer_padding(axes) == needed
    assert layer_price(Kernel(Channels.grouped(4, 4, 1), tuple(axes)), (9,)).others == needed


def test_prices_are_added_part_by_part() -> None:
    assert Price(1.5, 2, 3, 4, 5, 6) + Price(10.0, 20, 30, 40, 50, 60) == Price(11.5, 22, 33, 44, 55, 66)
    assert Price(11.5, 22, 33, 44, 55, 66) - Price(10.0, 20, 30, 40, 50, 60) == Price(1.5, 2, 3, 4, 5, 6)


def test_other_numbers_give_another_price() -> None:
    kernel = Kernel(Channels.grouped(32, 32, 1), (Axis(3),) * 2)
    plain = layer_price(kernel, (10, 10))
    for name in ("layer", "layer_traffic", "weight"):
        costs = Costs(**{name: getattr(DEFAULT, name) + 1.0})
        assert layer_price(kernel, (10, 10), costs).total > plain.total
    for costs in (Costs(depthwise=9.0), Costs(column=9.0), Costs(packed=9.0)):
        assert layer_price(kernel, (10, 10), costs) == plain


def test_a_transposed_convolution_costs_what_it_gathers_and_arranges() -> None:
    key = ((4, 4), (2, 2), (1, 1), (0, 0), (1, 1))
    kernel = Kernel(Channels.grouped(8, 16), (Axis(4), Axis(4)), transposed=key)
    without = layer_price(kernel, (5, 7), Costs(column=0.0, packed=0.0)).total
    assert layer_price(kernel, (5, 7), Costs(column=1.0, packed=0.0)).total - without == 16 * 16 * 5 * 7
    assert layer_price(kernel, (5, 7), Costs(column=0.0, packed=1.0)).total - without == 8 * 16 * 16


@pytest.mark.parametrize("wrong", [{"layer": -1.0}, {"weight": float("nan")}, {"tap": float("inf")}, {"rows": 0}])
def test_numbers_that_are_no_cost_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Costs(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names"):
        Costs.of({"layer": 1.0})


def test_a_padding_in_front_of_a_layer_costs_what_the_layer_with_it_does() -> None:
    """So that one is never written as the other: what is deployed would be found again at every look."""
    inside = Kernel(Channels.grouped(4, 8), (Axis(6, stride=2, before=2, after=3),))
    outside = Kernel(Channels.grouped(4, 8), (Axis(6, stride=2),))
    model = nn.Sequential(nn.ZeroPad1d((2, 3)), nn.Conv1d(4, 8, 6, stride=2)).eval()
    assert not reptool.explain(model).regions
    assert layer_price(inside, (512,)).others == 1
    assert layer_price(inside, (512,)).total > layer_price(outside, (517,)).total
