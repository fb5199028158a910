"""Every option of every block deploys to exactly one convolution, because of what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.testing import assert_collapses, count_operations
from tests.blocks.options import Option, all_options, rep_next_block_options

CHUNK = 25
OPTIONS = list(all_options())


@pytest.mark.parametrize("first", range(0, len(OPTIONS), CHUNK), ids=lambda i: f"{i}-{OPTIONS[i].id.split('-')[0]}")
def test_every_option_becomes_one_convolution(first: int) -> None:
    failures = []
    for option in OPTIONS[first : first + CHUNK]:
        # One 7x7 depthwise convolution costs more multiplications than a 7x7, a 5x5 and a 3x3 on a third each.
        forced = option.id.startswith("repnextunit")
        try:
            assert_collapses(option.build(), option.inputs(), force=forced)
        except AssertionError as error:
            failures.append(f"{option.id}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("option", list(rep_next_block_options()), ids=lambda o: o.id)
def test_a_rep_next_block_keeps_its_kernels_apart_and_loses_its_norm(option: Option) -> None:
    block, x = option.build(), option.inputs()
    kernels = len(block.unit.convs)  # type: ignore[union-attr, arg-type]
    if not plain(block):
        assert_collapses(block, x, convolutions=kernels + 2, forbidden=("batch norm", "multiplication"))
    forbidden = ("batch norm", "concatenation", "multiplication")
    forced = assert_collapses(block, x, convolutions=1 if plain(block) else 2, forbidden=forbidden, force=True)
    assert count_operations(forced, x)["addition"] == (not plain(block))


def plain(block: nn.Module) -> bool:
    """Whether nothing in a block is an activation."""
    return isinstance(block.activation, nn.Identity)


def test_a_block_that_does_not_collapse_fails() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(torch.relu(self.conv(x))))  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match="2 convolutions run, not 1"):
        assert_collapses(Twice(), torch.randn(2, 4, 8, 9))
