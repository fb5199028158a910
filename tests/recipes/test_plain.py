"""What is written down comes back; nothing else is written, and nothing else is read."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from reptool.algebra.kernel import Axis, Border, Channels, Kernel
from reptool.algebra.work import Work
from reptool.errors import RecipeError
from reptool.recipes.plain import NotPlainError, decode, encode
from reptool.refusal import Code, Refusal

VALUES = [
    None, True, 3, -2.5, "text", math.inf, [1, [2]], (1, (2, "a")), {"a": (1,), 2: None}, slice(1, None, 2),
    torch.float16, Work(1.5, 2.0, 3), Refusal(Code.STRIDE, "strides 1 and 2", ("a", "b")),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_values_come_back(value: Any) -> None:
    found = decode(json.loads(json.dumps(encode(value))))
    assert found == value
    assert type(found) is type(value)


def test_of_tensors_shape_and_dtype_come_back() -> None:
    found = decode(json.loads(json.dumps(encode((torch.ones(2, 3), {"ids": torch.ones(4, dtype=torch.int64)})))))
    assert found[0].shape == (2, 3)
    assert found[1]["ids"].dtype is torch.int64
    assert not found[0].any()


def test_kernels_come_back_without_their_weights() -> None:
    axes = (Axis(3, 2, 1, 1, 0, Border.REFLECT), Axis(1))
    value = torch.tensor([0.5, 1.5], dtype=torch.float64)
    kernel = Kernel(Channels.grouped(4, 2, 2), axes, torch.ones(2, 2, 3, 1), None, True, None, value)
    found = decode(json.loads(json.dumps(encode(kernel))))
    assert (found.channels, found.axes, found.biased, found.weight) == (kernel.channels, axes, True, None)
    assert torch.equal(found.border_value, value)
    assert decode(encode(Kernel(None, None))).channels is None


class Text(str):
    """A string that is more than one."""


ODD = [object(), Text("a"), np.float64(1.0), {1, 2}, b"bytes", len, [object()]]


@pytest.mark.parametrize("value", ODD, ids=lambda v: type(v).__name__)
def test_everything_else_is_not_written(value: Any) -> None:
    with pytest.raises(NotPlainError, match=r"^a \w+$"):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {"call": ["os.system"]}, {}, {"tuple": [1], "dict": []}, {"tuple": 3}, {"dict": [[1]]}, {"dict": [[[1], 2]]},
        {"float": "x"}, {"dtype": "load"}, {"dtype": "__class__"}, {"dtype": 3}, {"tensor": [[-1], "float32"]},
        {"tensor": [[2.5], "float32"]}, {"tensor": [[1 << 40], "float32"]}, {"tensor": []}, {"kernel": [1]},
        {"kernel": [[2, ["a"], [1]], None, True, None, None]}, {"refusal": ["no code", "x", []]}, {"work": ["a", 1, 1]},
        {"slice": [1]}, {"tuple": [{"tuple": [{"eval": "1"}]}]},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_such_data_is_an_error_of_ours(data: Any) -> None:
    with pytest.raises(RecipeError):
        decode(data)


def test_an_endless_nest_is_an_error_of_ours() -> None:
    data: Any = 1
    for _ in range(5000):
        data = {"tuple": [data]}
    with pytest.raises(RecipeError, match="nested too deep"):
        decode(data)
