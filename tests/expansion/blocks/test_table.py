"""What each block says it can replace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from reptool.blocks import (
    OREPA,
    ACBlock,
    DilatedReparamBlock,
    DiverseBranchBlock,
    EdgeOrientedBlock,
    LargeKernelBlock,
    MobileOneBlock,
    QARepVGGBlock,
    RefConv,
    RepVGGBlock,
    parametrizations,
)
from reptool.errors import InputError
from reptool.expansion import Adapter, adapter_for
from reptool.expansion.blocks.table import CHANGING, EVERYWHERE

CONV = nn.Conv2d(8, 8, 3, padding=1)
CASES: list[tuple[Any, nn.Module, str | None]] = [
    (RefConv, CONV, None),
    (RefConv, nn.Conv2d(8, 8, (1, 7)), "a kernel at least as large as the map's"),
    (RefConv, nn.Conv1d(8, 8, 3, padding_mode="circular"), None),
    (RefConv, nn.Conv3d(4, 4, 3, padding="same"), None),
    (ACBlock, nn.Conv2d(8, 16, 5, 2, 1, 1, 4, padding_mode="reflect"), None),
    (ACBlock, nn.Conv2d(8, 8, 4), "even kernel"),
    (ACBlock, nn.Conv2d(8, 8, 4, padding="same"), "even kernel"),
    (ACBlock, nn.Conv2d(8, 8, 1), "from 3 on"),
    (ACBlock, nn.Conv2d(8, 8, 3, stride=(1, 2)), r"stride=\(1, 2\)"),
    (ACBlock, nn.Conv1d(8, 8, 3), "2 or 3 axes"),
    (ACBlock, nn.Conv3d(8, 8, 3, 2, 1, groups=2), None),
    (DiverseBranchBlock, nn.Conv1d(8, 8, 5, 2, 2), None),
    (OREPA, nn.Conv3d(8, 8, 3, padding=1), None),
    (RepVGGBlock, nn.Conv3d(8, 8, 3, (1, 2, 2), 1), None),
    (RepVGGBlock, nn.Conv2d(8, 8, 3, padding="same"), None),
    (RepVGGBlock, nn.Conv2d(8, 8, 2), "even kernel"),
    (DiverseBranchBlock, nn.Conv2d(8, 8, 3, dilation=2), "it has no dilation"),
    (DiverseBranchBlock, nn.Conv2d(8, 8, 3, padding=3), "at most K//2"),
    (DiverseBranchBlock, nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "it has no padding_mode"),
    (MobileOneBlock, nn.Conv1d(8, 8, 3, dilation=2), None),
    (OREPA, nn.Conv2d(8, 8, 3, 2, 0, 2, 8), None),
    (OREPA, nn.Conv2d(8, 8, 1), "from 3 on"),
    (LargeKernelBlock, nn.Conv2d(8, 8, 3), "small kernel of at most"),
    (LargeKernelBlock, nn.Conv2d(8, 8, 7), None),
    (DilatedReparamBlock, nn.Conv2d(8, 8, 7, padding=3, groups=8), None),
    (DilatedReparamBlock, nn.Conv2d(8, 8, 7, padding=3), "depthwise"),
    (DilatedReparamBlock, nn.Conv2d(8, 8, 7, groups=8), "it has no padding"),
    (DilatedReparamBlock, nn.Conv2d(8, 8, 7, 2, 3, groups=8), "it has no stride"),
    (QARepVGGBlock, nn.Conv1d(8, 8, 5, 2, 2, groups=2), None),
    (QARepVGGBlock, nn.Conv2d(8, 8, 3, padding_mode="reflect"), "it has no padding_mode"),
    (EdgeOrientedBlock, nn.Conv2d(8, 12, 3, padding="same"), None),
    (EdgeOrientedBlock, nn.Conv2d(8, 8, 5, padding=2), "it has no kernel_size"),
    (EdgeOrientedBlock, nn.Conv2d(8, 8, 3, 2, 1), "it has no stride"),
    (EdgeOrientedBlock, nn.Conv2d(8, 8, 3), "it has no padding"),
    (EdgeOrientedBlock, nn.Conv2d(8, 8, 3, padding=1, groups=2), "it has no groups"),
    (parametrizations.weight_norm, nn.Conv1d(8, 8, 1), None),
    (parametrizations.dirac_net, nn.Conv2d(8, 8, 2), "odd"),
    (parametrizations.refconv, nn.Conv2d(8, 8, 1), "at least as large"),
]


@pytest.mark.parametrize(("block", "conv", "why"), CASES)
def test_can_replace(block: Any, conv: Any, why: str | None) -> None:
    found = adapter_for(block).can_replace(conv)
    if why is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(why, found), found


def test_asking_computes_nothing() -> None:
    before = torch.get_rng_state()
    adapter_for(DiverseBranchBlock).can_replace(nn.Conv2d(1, 1, 1))
    state = torch.get_rng_state()
    adapter_for(DiverseBranchBlock).can_replace(CONV)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(before, state)  # the convolution above drew its own


@pytest.mark.parametrize("block", [case[0] for case in CASES if case[2] is None])
def test_norms_and_names(block: Any) -> None:
    adapter = adapter_for(block)
    assert adapter.name == block.__name__
    assert adapter.takes_norm == (isinstance(block, type) and block not in (RefConv, EdgeOrientedBlock))


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="gama_init; its options for expand are affine, gamma_init"):
        adapter_for(ACBlock, options={"gama_init": 1})
    with pytest.raises(InputError, match="stride"):
        adapter_for(RefConv, options={"stride": 2})
    with pytest.raises(InputError, match="'silent' or 'live'"):
        adapter_for(RefConv, branches="loud")  # type: ignore[arg-type]
    assert "without weights" in str(adapter_for(ACBlock, options={"affine": False}).can_replace(CONV))


def test_unknown_blocks() -> None:
    with pytest.raises(InputError, match="does not know how 'BatchNorm2d' inherits"):
        adapter_for(nn.BatchNorm2d)
    with pytest.raises(InputError, match="does not know how 3"):
        adapter_for(3)


@pytest.mark.parametrize("name", CHANGING)
def test_parametrizations_that_cannot_preserve(name: str) -> None:
    function = getattr(parametrizations, name)
    with pytest.raises(InputError, match="use preserve=False"):
        adapter_for(function)
    adapter = adapter_for(function, preserve=False)
    assert adapter.can_replace(CONV) is None  # asked on the meta device
    made = adapter.build(CONV, None)
    assert not torch.allclose(made.weight, CONV.weight)  # type: ignore[arg-type]
    assert set(CHANGING) < set(EVERYWHERE)


def test_functions_and_adapters_of_the_users() -> None:
    def plain(conv: nn.Module) -> nn.Module:
        return nn.Sequential(conv)

    def with_norm(conv: nn.Module, norm: nn.Module | None) -> nn.Module:
        return nn.Sequential(conv, norm or nn.Identity())

    assert not adapter_for(plain).takes_norm
    assert adapter_for(with_norm).takes_norm
    made = adapter_for(with_norm).build(CONV, nn.BatchNorm2d(8))
    assert made[0] is not CONV  # type: ignore[index]
    with pytest.raises(InputError, match="returned a int"):
        adapter_for(lambda conv: 3).build(CONV, None)
    mine = _Mine()
    assert adapter_for(mine) is mine
    assert mine.main_norm(made) is None


class _Mine(Adapter):
    def can_replace(self, conv: Any) -> str | None:
        return None

    def build(self, conv: Any, norm: Any) -> nn.Module:
        return nn.Identity()
