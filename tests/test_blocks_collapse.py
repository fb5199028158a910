"""Every option of every block deploys to exactly one convolution, because of what it computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reptool.testing import assert_collapses, count_operations
from tests.blocks.options import Option, all_options, rep_next_block_options
from tests.sparse import sparse

PARTS = 18


@pytest.mark.parametrize("part", sparse(range(PARTS), 6))
def test_every_option_becomes_one_convolution(part: int) -> None:
    """Each part holds options of all blocks."""
    failures = []
    for option in list(all_options())[part::PARTS]:
        try:
            assert_collapses(option.build(), option.inputs())
        except AssertionError as error:  # noqa: PERF203 - all of them are told
            failures.append(f"{option.id}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("option", list(rep_next_block_options()), ids=lambda o: o.id)
def test_a_rep_next_block_becomes_its_unit_and_two_pointwise_layers(option: Option) -> None:
    block, x = option.build(), option.inputs()
    if not plain(block):
        assert_collapses(block, x, convolutions=3, forbidden=("batch norm", "multiplication", "concatenation"))
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
