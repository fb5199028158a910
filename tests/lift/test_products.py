"""Products with constant matrices along the channels, and weights that are expressions, against the model itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reptool
from reptool.refusal import Code
from reptool.testing import randomize

Forward = Callable[[Any, Tensor], Tensor]
BARE = pytest.mark.parametrize("bare", [False, True])


class Model(nn.Module):
    """Layers to stand in front of a product or behind it."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.own = forward
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.line, self.first, self.last = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 4)
        self.matrix, self.vector = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.rand(4))
        self.down, self.up = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4))
        self.weight = nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """By one of the forms below."""
        return torch.tanh(self.own(self, x))


def layers_run(model: nn.Module, x: Tensor) -> int:
    """How many products and norms one call computes."""
    from torch.profiler import profile

    wanted = {"aten::convolution", "aten::addmm", "aten::mm", "aten::bmm", "aten::batch_norm"}
    with profile() as found, torch.no_grad():
        model(x)
    return sum(e.count for e in found.key_averages() if e.key in wanted)


def check(forward: Forward, bare: bool, shapes: tuple[tuple[int, ...], ...]) -> tuple[int, set[Code]]:
    """Deploys a model, compares it at all of these shapes; how many layers it runs, and what was refused."""
    model = randomize(Model(forward).eval()).double()
    deployed = reptool.deploy(model, *(() if bare else (torch.randn(shapes[0], dtype=torch.float64),)))
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)
    codes = {r.code for r in reptool.report(deployed).refusals}
    return layers_run(deployed, torch.randn(shapes[0], dtype=torch.float64)), codes


POINTWISE: dict[str, Forward] = {
    "oc": lambda self, x: self.norm(torch.einsum("oc,bchw->bohw", self.matrix, self.conv(x))),
    "co": lambda self, x: self.norm(torch.einsum("b c h w, c o -> b o h w", self.conv(x), self.matrix)),
    "ellipsis": lambda self, x: self.norm(torch.einsum("oc,bc...->bo...", self.matrix, self.conv(x))),
    "front": lambda self, x: self.conv(x) + torch.einsum("...chw,co->...ohw", x, self.matrix),
    "vector": lambda self, x: torch.einsum("bchw,c->bchw", self.conv(x), self.vector),
}


@BARE
@pytest.mark.parametrize("name", POINTWISE)
def test_an_einsum_along_the_channels_is_pointwise(name: str, bare: bool) -> None:
    layers, codes = check(POINTWISE[name], bare, ((2, 4, 8, 7), (1, 4, 1, 2), (3, 4, 5, 9)))
    assert layers == 1
    assert not codes


LINES: dict[str, Forward] = {
    "@": lambda self, x: self.matrix @ self.line(x),
    "matmul": lambda self, x: torch.matmul(self.matrix.t(), self.line(x)),
    "before": lambda self, x: self.line(x) + self.matrix.matmul(x),
}


@BARE
@pytest.mark.parametrize("name", LINES)
def test_a_matrix_on_the_left_is_pointwise(name: str, bare: bool) -> None:
    layers, codes = check(LINES[name], bare, ((2, 4, 8), (1, 4, 1), (3, 4, 5)))
    assert layers == 1
    assert not codes


ROWS: dict[str, Forward] = {
    "adapter": lambda self, x: self.first(x) + (x @ self.down @ self.up) * 0.5,
    "einsum": lambda self, x: self.last(torch.einsum("bc,co->bo", self.first(x), self.matrix)),
    "any rank": lambda self, x: self.last(torch.einsum("...c,oc->...o", self.first(x), self.matrix)),
    "tensordot": lambda self, x: self.last(torch.tensordot(self.first(x), self.matrix, dims=1)),
    "tensordot at": lambda self, x: self.last(torch.tensordot(self.first(x), self.matrix, dims=([-1], [1]))),
    "addmm": lambda self, x: self.last(torch.addmm(self.vector, self.first(x), self.matrix)),
}


@BARE
@pytest.mark.parametrize("name", ROWS)
def test_a_matrix_behind_the_last_axis_is_linear(name: str, bare: bool) -> None:
    layers, _ = check(ROWS[name], bare, ((3, 4), (1, 4), (7, 4)))
    assert layers == 1


@BARE
def test_an_einsum_of_rank_three_needs_that_rank(bare: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(torch.einsum("blc,oc->blo", self.first(x), self.matrix))

    layers, codes = check(forward, bare, ((2, 3, 4), (1, 5, 4)))
    assert (layers, codes) == ((3, {Code.RANK_UNKNOWN}) if bare else (1, set()))


TRAPS: dict[str, Forward] = {
    "width": lambda self, x: torch.einsum("bchw,wo->bcho", self.conv(x), self.matrix),
    "batched": lambda self, x: self.matrix @ self.conv(x),
    "moved": lambda self, x: torch.einsum("bchw,co->bhwo", self.conv(x), self.matrix),
    "kept": lambda self, x: torch.einsum("bchw,co->bcohw", self.conv(x), self.matrix),
    "two": lambda self, x: torch.einsum("bchw,cw->bhw", self.conv(x), self.matrix),
    "tensordot": lambda self, x: torch.tensordot(self.conv(x), self.matrix, dims=([1], [0])),
    "tensordot of two": lambda self, x: torch.tensordot(self.conv(x)[:, :, :4, :4], self.matrix),
    "data": lambda self, x: torch.einsum("bchw,bc->bchw", self.conv(x), x.mean((2, 3))),
    "whole number": lambda self, x: torch.einsum("bchw,c->bchw", self.conv(x), torch.full((4,), 2).to(x)),
}


@BARE
@pytest.mark.parametrize("name", TRAPS)
def test_a_product_along_another_axis_is_none(name: str, bare: bool) -> None:
    check(TRAPS[name], bare, ((2, 4, 4, 4), (1, 4, 4, 4)))


def test_a_matrix_that_meets_another_axis_is_refused() -> None:
    for bare in (False, True):
        assert Code.LAYOUT in check(TRAPS["width"], bare, ((2, 4, 4, 4),))[1]
        assert Code.LAYOUT in check(TRAPS["batched"], bare, ((2, 4, 4, 4),))[1]
        assert Code.LAYOUT in check(TRAPS["tensordot"], bare, ((2, 4, 4, 4),))[1]


def test_a_vector_of_rank_one_is_not_taken_for_channels() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.matrix @ self.first(x)

    for bare in (False, True):
        check(forward, bare, ((4, 4),))
        check(forward, bare, ((4,),))


def rebuilt(self: Any) -> Tensor:
    """A kernel that is symmetric under quarter turns."""
    out, width, high, wide = self.weight.shape
    turned = torch.stack([torch.rot90(self.weight, k, [2, 3]) for k in range(4)]).mean(0)
    return torch.cat([turned[:2], turned[2:].flip(0)]).reshape(out, width, high, wide)


WEIGHTS: dict[str, Forward] = {
    "flip": lambda self, x: F.conv2d(x, self.weight.flip(2, 3), padding=1),
    "slice": lambda self, x: F.conv2d(x, self.weight[:, :, :2, 1:], padding=1),
    "permute": lambda self, x: F.conv2d(x, self.weight.permute(1, 0, 3, 2), padding=1),
    "pad": lambda self, x: F.conv2d(x, F.pad(self.weight[:, :, 1:2, 1:2], [1, 1, 1, 1]), padding=1),
    "rebuilt": lambda self, x: F.conv2d(x, rebuilt(self), padding=1),
    "einsum": lambda self, x: F.conv2d(x, torch.einsum("oi,ijhw->ojhw", self.matrix, self.weight), padding=1),
}


@BARE
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_an_expression_is_worked_out_once(name: str, bare: bool) -> None:
    forward = WEIGHTS[name]
    layers, codes = check(lambda self, x: self.norm(forward(self, x)), bare, ((2, 4, 8, 7), (1, 4, 2, 3), (3, 4, 5, 9)))
    assert layers == 1
    assert not codes


@BARE
def test_a_weight_whose_entries_are_written_where_it_is_made_is_a_constant(bare: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = torch.zeros_like(self.weight)
        weight[:, :, 1, 1] = self.weight[:, :, 1, 1]
        return self.norm(F.conv2d(x, weight, padding=1))

    layers, codes = check(forward, bare, ((2, 4, 8, 7), (1, 4, 3, 3)))
    assert layers == 1
    assert not codes


@BARE
def test_a_weight_that_is_written_through_a_view_is_refused(bare: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = torch.zeros_like(self.weight)
        weight[:, :, 1][:, :, 1] = self.weight[:, :, 1, 1]
        return self.norm(F.conv2d(x, weight, padding=1))

    layers, codes = check(forward, bare, ((2, 4, 8, 7), (1, 4, 3, 3)))
    assert layers == 2
    assert Code.DATA_WEIGHT in codes
