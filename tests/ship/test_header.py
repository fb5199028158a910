"""The header says what the file holds, and nothing in it is more than data."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from reptool.errors import RecipeError
from reptool.ship.header import Header, digest_of, versions

GOOD = {"format": "reptool-1", "model": "Net", "versions": {"torch": "2"}, "steps": [{}], "same": {}, "strides": {}}


def test_what_is_written_is_read() -> None:
    header = Header("Сеть", {"torch": "2.8"}, [{"a": 1}], {"b": "a"}, {"a": [1, 2]})
    assert Header.read(header.text()) == header
    assert header.text().isascii()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no JSON"), ("[" * 100_000, "no JSON"), ("[]", "other fields"), ("{}", "other fields"),
        (json.dumps({**GOOD, "code": "import os"}), "other fields"),
        (json.dumps({**GOOD, "format": "reptool-2"}), "of the format 'reptool-2', this release reads 'reptool-1'"),
        (json.dumps({**GOOD, "steps": {}}), "other types"), (json.dumps({**GOOD, "steps": []}), "other types"),
        (json.dumps({**GOOD, "same": {"a": 1}}), "other types"),
        (json.dumps({**GOOD, "versions": {"a": []}}), "other types"),
        (json.dumps({**GOOD, "model": None}), "other types"),
    ],
    ids=lambda t: t[:40],
)  # fmt: skip
def test_what_is_none_is_an_error_of_ours(text: str, said: str) -> None:
    assert Header.read(json.dumps(GOOD)).model == "Net"
    with pytest.raises(RecipeError, match=said):
        Header.read(text)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64]
)
def test_every_bit_counts(dtype: torch.dtype) -> None:
    tensors = {"a": torch.ones(3, dtype=dtype), "none": torch.zeros(0, dtype=dtype), "one": torch.ones((), dtype=dtype)}
    first = digest_of("text", tensors)
    assert digest_of("text", {n: tensors[n].clone() for n in reversed(tensors)}) == first
    assert digest_of("other", tensors) != first
    assert digest_of("text", {**tensors, "one": torch.zeros((), dtype=dtype)}) != first
    assert digest_of("text", {**tensors, "none": torch.zeros(1, dtype=dtype)}) != first
    assert digest_of("text", {"b" if n == "a" else n: t for n, t in tensors.items()}) != first


def test_versions_are_those_of_the_packages_of_the_model() -> None:
    found = versions(nn.Sequential(nn.Linear(2, 2)))
    assert found["torch"] == str(torch.__version__)
    assert {"python", "reptool", "torch"} == set(found)
