"""Multiplications on the example inputs, against torch's own counter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.frontends.inputs import example_arguments
from reptool.ir.walk import cloned
from reptool.report.counting import Multiplications
from tests.networks import random_network
from tests.sparse import sparse
from tests.test_refusals import conv, net


def counted(model: nn.Module, inputs: Any) -> int:
    """Multiplications as `torch.utils.flop_counter` has them: half of its operations."""
    model = copy.deepcopy(model).requires_grad_(False)
    args, kwargs = example_arguments(inputs, model)
    with FlopCounterMode(display=False) as counter:
        model(*cloned(args), **cloned(kwargs))
    return int(counter.get_total_flops()) // 2


def attention(self: Any, x: Tensor) -> Tensor:
    """Products of values with each other count as well."""
    q, k, v = self.qkv(x).chunk(3, -1)
    return self.out((q @ k.transpose(1, 2)).softmax(-1) @ v)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "branches": (lambda: nn.Sequential(RepVGGBlock(3, 8, stride=2), RepVGGBlock(8, 8)), (2, 3, 17, 13)),
    "weights": (lambda: nn.Sequential(DiverseBranchBlock(8, 8)), (2, 8, 17, 13)),
    "grouped": (lambda: nn.Sequential(conv(4, 8, groups=4), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4, 1)), (3, 4, 9, 7)),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU()), (2, 4, 5, 6)
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 4, 5, 2), nn.BatchNorm1d(4), nn.ReLU()), (2, 3, 21)),
    "three": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU()), (2, 2, 5, 6, 7)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2)), (4, 5)),
    "sequence": (lambda: nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 3)), (2, 6, 5)),
    "attention": (lambda: net(attention, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)), (2, 5, 8)),
    "pooling": (lambda: nn.Sequential(conv(64, 32, 1), nn.AvgPool2d(2), nn.ReLU()), (2, 64, 16, 16)),
    "crop": (lambda: net(lambda self, x: F.pad(self.a(x), (-1, -1, 0, -1)), a=conv(3, 4)), (2, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_the_report_counts_as_torch_does(case: str) -> None:
    build, shape = MODELS[case]
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(shape)
    deployed = reptool.deploy(model, x)
    expected = counted(model, x), counted(deployed, x)
    report = reptool.report(deployed)
    assert report.multiplications == expected
    planned = reptool.explain(model, x).multiplications
    assert planned == (expected if case != "weights" else (expected[0], None)), (
        "worked out from the shapes of the regions"
    )
    assert {r.at for r in report.regions} <= {"example_inputs"}
    saved = sum(r.multiplications[0] - r.multiplications[1] for r in report.regions)
    assert saved == expected[0] - expected[1]
    assert f"{expected[0]:,}" in str(report)


@pytest.mark.parametrize("first", sparse(range(0, 40, 10), 4))
def test_the_report_counts_random_networks_as_torch_does(first: int) -> None:
    for seed in range(first, first + 10):
        model, inputs = random_network(seed)
        deployed = reptool.deploy(model, inputs)
        expected = counted(model, inputs), counted(deployed, inputs)
        assert reptool.report(deployed).multiplications == expected, seed
        planned = reptool.explain(model, inputs).multiplications
        assert planned is not None
        assert planned[0] == expected[0]
        assert planned[1] in (None, expected[1]), seed


def test_without_example_inputs_there_are_no_totals_and_the_size_is_said_to_be_nominal() -> None:
    model = nn.Sequential(RepVGGBlock(3, 8)).eval()
    for report in (reptool.explain(model), reptool.report(reptool.deploy(model))):
        assert report.multiplications is None
        (region,) = report.regions
        assert region.at == "nominal"
        assert region.multiplications == (8 * 3 * (9 + 1) * 56 * 56, 8 * 3 * 9 * 56 * 56)
        assert "at a nominal size" in str(report)
        assert "multiplications of what was fused (nominal size)" in str(report)


def test_what_computes_a_weight_multiplies_too_so_that_a_plan_does_not_know() -> None:
    model, x = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.ReLU()).eval(), torch.randn(2, 4)
    assert reptool.explain(model, x).multiplications == (32, None)
    assert "not known" in str(reptool.explain(model, x))
    assert reptool.report(reptool.deploy(model, x)).multiplications == (32, 32)


def test_what_cannot_be_counted_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> int:
        raise ValueError("no plain shape")

    monkeypatch.setitem(flop_registry, torch.ops.aten.addmm, broken)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval(), torch.randn(2, 4)
    report = reptool.report(reptool.deploy(model, x))
    assert report.multiplications is None
    assert report.regions[0].multiplications == (32, 32)
    assert "multiplications of what was fused " in str(report)
    assert "nominal" not in str(report)


def test_the_counter_sees_what_is_made_of_other_operations() -> None:
    x = torch.randn(2, 3, 4)
    with torch.inference_mode(), Multiplications() as inner:
        F.linear(x, torch.randn(5, 4))
        torch.einsum("bij,bkj->bik", x, x)
        F.conv_transpose1d(x, torch.randn(3, 2, 2))
    assert inner.count == 2 * 3 * 4 * 5 + 2 * 3 * 3 * 4 + 2 * 4 * 3 * 2 * 2


def test_how_often_a_branch_runs_is_not_known() -> None:
    layer = nn.Linear(3, 5)
    x = torch.ones(2, 3)
    with torch.no_grad(), Multiplications() as counted:
        y = torch.cond(x.sum() > 0, lambda v: layer(v), lambda v: layer(v) * 2, (x,))
    torch.testing.assert_close(y, layer(x))
    assert counted.known is None
