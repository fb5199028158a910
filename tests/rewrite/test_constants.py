"""Constants of generated code are text that means what it says, or data."""

from __future__ import annotations

import enum
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reptool.rewrite.constants import CannotCutError, Constants, address, is_text
from reptool.runtime.containers import Place, template_of


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


class Half(float):
    """A number whose text is none."""

    def __repr__(self) -> str:
        return "a half"


class Word(str):
    """A word whose text is none."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<word>"


def evaluated(value: Any, taken: tuple[str, ...] = ()) -> Any:
    """What the text of a constant gives in a scope that holds nothing but the table."""
    constants = Constants(taken)
    text = constants.text(value)
    scope = {name: __import__(module) for name, module, _ in constants.names} | dict(constants.values)
    assert not set(taken) & scope.keys()
    return eval(text, scope)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(plain)
def test_plain_values_are_what_their_text_says(value: Any) -> None:
    found = evaluated(value)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(0.1), np.float32(0.1), np.int64(3), np.bool_(True), Half(0.5), Word("a"), Colour.RED, math.inf,
        -math.inf, torch.float16, torch.channels_last, torch.strided, torch.device("cpu"), torch.Size([1, 2]), int,
        Half, 1 + 2j, slice(1, None, np.int64(2)), {"a": (Colour.RED, [Half(0.5)])}, 'say "hi"\n\0\\', "\ud800", ...,
        math.ceil, torch.relu, torch.nn.functional.pad, np.prod, np.sqrt, torch.ops.aten.relu.default, math, {1, 2},
        set(),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_every_other_value_is_kept_as_it_is(value: Any) -> None:
    found = evaluated(value)
    assert type(found) is type(value)
    assert found == value


def test_an_array_is_another_one_at_every_call() -> None:
    value, constants = np.arange(3), Constants()
    text = constants.text(value)
    value[0] = 9
    for _ in range(2):
        found = eval(text, dict(constants.values))
        assert found.tolist() == [0, 1, 2]
        found[0] = 1


def test_not_a_number_is_data() -> None:
    assert not is_text(math.nan)
    assert math.isnan(evaluated(math.nan))


@pytest.mark.parametrize("taken", [("torch", "math"), ("_c0", "_c1", "torch", "torch_0")])
def test_no_name_that_the_source_uses_is_taken(taken: tuple[str, ...]) -> None:
    assert evaluated((torch.float16, Colour.RED, math.ceil), taken) == (torch.float16, Colour.RED, math.ceil)


@pytest.mark.parametrize(
    "value",
    [object(), lambda x: x, np.array([object()]), torch.ones(1), torch.Generator(), torch.nn.ReLU(), [object()]],
    ids=lambda v: type(v).__name__,
)
def test_what_cannot_be_stored_is_refused(value: Any) -> None:
    with pytest.raises(CannotCutError):
        Constants().text(value)


def test_one_value_is_one_entry() -> None:
    constants = Constants()
    value = Half(0.5)
    assert constants.text(value) == constants.text(value)
    assert len(constants.values) == 1


def test_a_template_is_kept() -> None:
    constants = Constants()
    template = template_of([Place(0)])
    constants.text(template)
    assert pickle.loads(pickle.dumps(constants.values)) == constants.values


def test_addresses() -> None:
    assert address(torch.conv2d) == ("torch", "conv2d")
    assert address(round) == ("builtins", "round")
    assert address(Constants.text) is not None
    assert address(Half(1.0)) is None
    assert address(torch.ops.aten.relu) == ("torch", "ops.aten.relu")
