"""The laws are proved on small ranges; wrong conditions are disproved, and torch agrees with each witness."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("z3")

from reptool.algebra import compose as composition
from reptool.algebra import laws
from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.refusal import Code
from reptool.testing import apply_kernel
from tests.prove import statements

SMALL: dict[str, Any] = {"kernels": range(1, 3), "strides": range(1, 3)}


def kernel(witness: dict[str, Any], name: str, biased: bool = False) -> Kernel:
    """The layer that a witness speaks of, with a weight of its own at each tap."""
    size, stride, dilation, before, after = (
        witness[f"{name}.{part}"] for part in ("kernel_size", "stride", "dilation", "before", "after")
    )
    axis = Axis(size, stride, dilation, before, after, Border(witness[f"{name}.border"]))
    weight = torch.arange(1, size + 1, dtype=torch.float64).reshape(1, 1, size) + len(name)
    bias = torch.ones(1, dtype=torch.float64) if biased else None
    value = torch.full((1,), 0.5, dtype=torch.float64) if axis.border is Border.CONSTANT else None
    return Kernel(Channels.grouped(1, 1), (axis,), weight, bias, biased, None, value)


def image(witness: dict[str, Any]) -> torch.Tensor:
    return torch.arange(1, witness["n"] + 1, dtype=torch.float64).reshape(1, 1, -1)


def composed_is_wrong(witness: dict[str, Any]) -> bool:
    """Whether torch gives something else for two layers than for what the law in use makes of them."""
    f, g = kernel(witness, "f", bool(witness["f.biased"])), kernel(witness, "g")
    both = composition.compose(g, f)
    assert isinstance(both, Kernel), both
    wanted = apply_kernel(g, apply_kernel(f, image(witness)))
    try:
        got = apply_kernel(both, image(witness))
    except Exception:  # it extends by more than there is
        return True
    return got.shape != wanted.shape or not torch.allclose(got, wanted)


def added_is_wrong(witness: dict[str, Any], raises: bool) -> bool:
    """The same for two branches."""
    one, two = kernel(witness, "one"), kernel(witness, "two")
    both = laws.concat([one, two]) if raises else laws.add([one, two])
    assert isinstance(both, Kernel), both
    first, second = (apply_kernel(k, image(witness)) for k in (one, two))
    if first.shape != second.shape:
        return not raises
    try:
        got = apply_kernel(both, image(witness))
    except Exception:  # it extends by more than there is
        return True
    wanted = torch.cat([first, second], 1) if raises else first + second
    return got.shape != wanted.shape or not torch.allclose(got, wanted)


def mutant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """A law with one condition changed."""
    source = inspect.getsource(function)
    assert source.count(old) == 1, old
    made: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, made)
    return made[function.__name__]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("ranges", "least"),
    [({"kernels": range(1, 3), "strides": range(2, 3)}, 200), pytest.param(SMALL, 300, marks=pytest.mark.slow)],
)
def test_composition_is_proved(ranges: dict[str, Any], least: int) -> None:
    found = statements.compose(**ranges)
    assert found.wrong == []
    assert found.proved > least
    assert found.refused[Code.BORDER_READ]


@pytest.mark.parametrize(
    ("ranges", "least"),
    [({"kernels": range(2, 3), "strides": range(1, 3)}, 400), pytest.param(SMALL, 1000, marks=pytest.mark.slow)],
)
def test_sums_are_proved(ranges: dict[str, Any], least: int) -> None:
    found = statements.parallel(False, **ranges)
    assert found.wrong == []
    assert found.proved > least
    assert {Code.STRIDE, Code.EXTENT, Code.BORDER_MODE} <= found.refused.keys()


def test_lattices_and_transposed_convolutions_are_proved() -> None:
    assert statements.lattice(3).wrong == statements.transposed().wrong == []


COMPOSE = [
    ("f.before >= f.span - (f.stride - 1)", "f.before >= f.span - f.stride"),
    ("f.after >= f.span", "f.after >= f.span - 1"),
    ("g.before <= 0 or", "g.before <= 1 or"),
]


@pytest.mark.parametrize(("old", "new"), COMPOSE)
def test_a_wrong_condition_of_compose_is_disproved(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutant(composition._compose_axis, old, new)
    found = statements.compose(wrong, **SMALL, most=1)
    assert found.wrong
    monkeypatch.setattr(composition, "_compose_axis", wrong)
    assert composed_is_wrong(found.wrong[0]), found.wrong[0]


PARALLEL = [
    (True, "max(extents) - min(extents) < axes[0].stride", "max(extents) - min(extents) <= axes[0].stride"),
]


@pytest.mark.parametrize(("raises", "old", "new"), PARALLEL)
def test_a_wrong_condition_of_sums_is_disproved(
    raises: bool, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = mutant(laws._merge_axis, old, new)
    found = statements.parallel(raises, wrong, **SMALL, most=1)
    assert found.wrong
    monkeypatch.setattr(laws, "_merge_axis", wrong)
    assert added_is_wrong(found.wrong[0], raises), found.wrong[0]


def test_a_wrong_padding_of_a_transposed_convolution_is_disproved() -> None:
    assert statements.transposed(lambda d, k, a: k - 1 - a).wrong
