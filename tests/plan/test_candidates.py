"""The forms of every value of random programs, against running the programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reptool.algebra.kernel import Kernel
from reptool.ir.ops import Affine
from reptool.probing.response import applied
from tests.plan.programs import C, analysed, program, values_of

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_form_computes_its_value_from_its_root(seed: int) -> None:
    model, x = program(seed), torch.randn(2, C, 7, 6, dtype=torch.float64)
    found = analysed(model, x)
    held = values_of(found, x)
    for node, forms in found.forms.items():
        for root, form in forms.items():
            kernel = form.kernel()
            assert form.root is root
            if not isinstance(kernel, Kernel) or form.layout is not None or node not in held:  # a part of a sum
                continue
            kernel = kernel if kernel.channels is not None else kernel.with_channels(held[root].shape[1])
            kernel = kernel if kernel.axes is not None else kernel.with_axes(2)
            made, size = applied(kernel, held[root])
            assert made is not None
            assert size is not None
            assert (made - held[node]).abs().max() <= 1e-10 * max(1.0, float(size.max())), f"{node} of {root}"


@pytest.mark.parametrize("seed", SEEDS)
@torch.no_grad()
def test_a_form_holds_what_lies_between(seed: int) -> None:
    x = torch.randn(1, C, 7, 6, dtype=torch.float64)
    found = analysed(program(seed), x)
    for node, forms in found.forms.items():
        for root, form in forms.items():
            assert not form.ops or node in form.ops
            assert root not in form.ops
            for op in form.ops:  # all that is read comes from the root or from what the form computes
                assert set(found.ops[op].sources) <= form.ops | {root}
            assert form.shape.weight is None


def test_values_that_somebody_else_reads_are_wanted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.b(self.a(x))
            return torch.relu(y), y.mean()

    found = analysed(Net().eval(), torch.randn(1, C, 5, 5))
    wanted = {n.name for n in found.wanted}
    assert "b" in wanted
    assert "a" not in wanted
    b = next(n for n in found.graph.nodes if n.name == "b")
    assert {"a", "x0"} <= {r.name for r in found.forms[b]}
    assert isinstance(found.ops[b], Affine)


def test_what_cannot_be_lifted_says_why() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(C, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x)  # type: ignore[no-any-return]

    found = analysed(Net().eval(), torch.randn(1, C, 5, 5))
    assert [n.name for n in found.refused] == ["norm"]
