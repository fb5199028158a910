"""A shortcut around several layers is more channels of them, whatever their groups and the activations between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from reptool.errors import InputError
from reptool.fusions import carry_shortcut
from reptool.fusions.nonlinear.carried_shortcut import Widened, sides_of_slopes

ANY: list[Callable[[Tensor], Tensor]] = [torch.relu, F.gelu, F.silu, torch.sigmoid, F.hardswish, lambda t: t**2]
RUN: list[Callable[..., Tensor]] = [F.linear, F.conv1d, F.conv2d]


def run(layers: list[tuple[Tensor, Any, int]], between: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """A chain of layers of kernels of odd size, with activations between them."""
    for i, (w, b, g) in enumerate(layers):
        axes = w.dim() - 2
        same: dict[str, Any] = {"groups": g, "padding": [k // 2 for k in w.shape[2:]]} if axes else {}
        x = RUN[axes](x, w, b, **same)
        x = between[i](x) if i < len(between) else x
    return x


def widened(layers: list[Widened]) -> list[tuple[Tensor, Any, int]]:
    return [(one.weight, one.bias, one.groups) for one in layers]


@st.composite
def chains(draw: Any) -> tuple[list[Tensor], list[Any], list[int]]:
    """Layers of several groups and sizes; the last one writes as many channels as the first one reads."""
    axes, count = draw(st.integers(0, 2)), draw(st.integers(2, 4))
    widths = [draw(st.sampled_from([4, 6])), *[draw(st.sampled_from([4, 6, 12])) for _ in range(count - 1)]]
    widths.append(widths[0])
    weights, biases, groups = [], [], []
    for i in range(count):
        fits = [g for g in (1, 2, 3, 4, 6, 12) if not (widths[i] % g or widths[i + 1] % g)]
        groups.append(draw(st.sampled_from(fits)) if axes else 1)
        size = [draw(st.sampled_from([1, 3, 5])) for _ in range(axes)]
        weights.append(torch.randn(widths[i + 1], widths[i] // groups[-1], *size, dtype=torch.float64))
        biases.append(torch.randn(widths[i + 1], dtype=torch.float64) if draw(st.booleans()) else None)
    return weights, biases, groups


@given(chains(), st.sampled_from(ANY), st.sampled_from(ANY), st.sampled_from(["interleaved", "concatenated"]))
def test_a_shortcut_of_the_same_activations(chain: Any, one: Any, two: Any, layout: str) -> None:
    weights, biases, groups = chain
    given = [t.clone() for t in (*weights, *(b for b in biases if b is not None))]
    x = torch.randn(3, weights[0].shape[1] * groups[0], *(7, 6)[: weights[0].dim() - 2], dtype=torch.float64)
    between = [one, two, one][: len(weights) - 1]
    wanted = run(list(zip(weights, biases, groups, strict=True)), between, x)
    shortcut = x
    for activation in between:
        shortcut = activation(shortcut)
    made = carry_shortcut(weights, biases, groups, layout=layout)
    torch.testing.assert_close(run(widened(made), between, x), wanted + shortcut, rtol=1e-10, atol=1e-10)
    kept = [g if x.shape[1] % g == 0 and layout == "interleaved" else None for g in groups]
    assert all(k is None or k == one.groups for k, one in zip(kept, made, strict=True))
    assert layout == "interleaved" or all(one.groups == 1 for one in made)
    assert all(torch.equal(t, o) for t, o in zip(given, (*weights, *(b for b in biases if b is not None)), strict=True))


def slopes(p: float, q: float) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.where(t >= 0, p * t, q * t)


@given(chains(), st.sampled_from([0.0, 0.25, -0.5, 2.0, 1.0]), st.sampled_from([(1.0, 1.0), (1.0, 0.0), (0.5, -2.0)]))
def test_a_shortcut_through_slopes(chain: Any, below: float, own: tuple[float, float]) -> None:
    weights, biases, groups = chain
    channels = weights[0].shape[1] * groups[0]
    x = torch.randn(3, channels, *(7, 6)[: weights[0].dim() - 2], dtype=torch.float64)
    between = [slopes(1.0, below)] * (len(weights) - 1)
    lost = torch.ones(1, dtype=torch.float64), -torch.ones(1, dtype=torch.float64)
    for activation in between:
        lost = activation(lost[0]), activation(lost[1])
    found = sides_of_slopes(torch.stack([lost[0], -lost[1]], 1), torch.tensor([own], dtype=torch.float64))
    if found is None:
        assert (below, own[0] != own[1]) == (1.0, True), "the copies are the same function of either sign"
        return
    signs, back = found
    assert len(signs) == 2 - (below == 1.0) - (below == 0.0 and own[1] == 0.0)
    made = carry_shortcut(weights, biases, groups, signs=signs, back=back.expand(channels, -1))
    wanted = run(list(zip(weights, biases, groups, strict=True)), between, x) + slopes(*own)(x)
    torch.testing.assert_close(run(widened(made), between, x), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("through", "wanted"),
    [((1.0, -1.0), (1.0, 1.0)), ((0.0, 0.0), (1.0, 1.0)), ((1.0, 1.0), (1.0, 0.0)), ((1.0, -0.99), (1.0, 1.0))],
    ids=["even", "nothing left", "odd", "nearly even"],
)
def test_what_is_lost_is_not_made_again(through: tuple[float, float], wanted: tuple[float, float]) -> None:
    assert sides_of_slopes(torch.tensor([through]), torch.tensor([wanted])) is None


def test_a_depthwise_layer_has_the_copy_of_a_channel_behind_it() -> None:
    first, last = carry_shortcut(
        [torch.full((2, 1, 3), 5.0), torch.full((2, 2, 1), 7.0)], [None, torch.ones(2)], [2, 1]
    )
    assert first.groups == 2
    assert first.weight[:, 0].tolist() == [[5.0, 5.0, 5.0], [0.0, 1.0, 0.0]] * 2
    assert (first.originals.tolist(), first.copies.tolist()) == ([0, 2], [[1], [3]])
    assert last.weight[..., 0].tolist() == [[7.0, 1.0, 7.0, 0.0], [7.0, 0.0, 7.0, 1.0]]
    assert (last.bias.tolist(), last.copies.numel()) == ([1.0, 1.0], 0)  # type: ignore[union-attr]


ONE, TWO = torch.ones(2, 3), torch.ones(3, 2)


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ([ONE], {}, "two or more"),
        ([TWO, TWO], {}, "does not read 3 channels"),
        ([ONE, torch.ones(2, 2)], {}, "writes 2 channels beside a shortcut of 3"),
        ([ONE, TWO], {"layout": "rows"}, "give 'interleaved' or 'concatenated'"),
        ([ONE, TWO], {"signs": ()}, r"back is \[channels, copies\]"),
        ([ONE, TWO], {"back": torch.ones(2, 1)}, r"got \(2, 1\)"),
    ],
)
def test_what_does_not_fit_is_an_error(given: list[Tensor], options: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        carry_shortcut(given, [None] * len(given), **options)
