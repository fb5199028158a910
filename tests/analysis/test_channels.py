"""Channel similarity."""

from __future__ import annotations

import math

import pytest
import torch

from reptool.analysis import channel_similarity
from reptool.errors import InputError


def test_against_the_definition() -> None:
    kernel = torch.randn(3, 2, 2, 3)
    found = channel_similarity(kernel)
    rows = kernel.double().reshape(6, 6)
    for i in range(6):
        for j in range(6):
            p = [math.exp(v) for v in rows[i].tolist()]
            q = [math.exp(v) for v in rows[j].tolist()]
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            wanted = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            assert float(found.divergence[i, j]) == pytest.approx(wanted, abs=1e-12)
    off = [float(found.divergence[i, j]) for i in range(6) for j in range(6) if i != j]
    assert found.mean == pytest.approx(sum(off) / 30)
    torch.testing.assert_close(found.shown, torch.log10(1 + found.divergence))


def test_equal_channels_have_no_divergence() -> None:
    kernel = torch.randn(1, 1, 3, 3).expand(8, 2, 3, 3)
    assert channel_similarity(kernel).mean < 1e-12


def test_limit() -> None:
    kernel = torch.randn(100, 1, 3, 3)
    assert channel_similarity(kernel).divergence.shape == (64, 64)
    assert channel_similarity(kernel, None).divergence.shape == (100, 100)
    torch.testing.assert_close(channel_similarity(kernel, 5).divergence, channel_similarity(kernel[:5]).divergence)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.ones(4, 4, 1, 1), "no entries"),
        (torch.ones(4, 4), "no entries"),
        (torch.ones(1, 1, 3), "at least two"),
        (torch.full((4, 1, 3), math.nan), "not finite"),
    ],
)
def test_bad_kernels(kernel: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        channel_similarity(kernel)
