"""Questions about ranks and numbers of pieces that a norm settles."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reptool
from reptool.testing import randomize


class Contrast(nn.Module):
    """Norm, product with vectors, and the axes of the norm's output."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(8)
        self.form = form

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Scores for each vector and place."""
        x = self.norm(x)
        if self.form == "slice":
            sizes = [*x.shape[2:]]
        elif self.form == "whole":
            sizes = list(x.shape)[2:]
        elif self.form == "activated":
            sizes = [*F.relu(x).shape[2:]]
        else:
            sizes = [*w.sum(-1).shape[1:], x.shape[3]]
        return (w @ x.flatten(2)).view(-1, w.shape[1], *sizes)


class Scored(nn.Module):
    """A head in front of the norm, as detectors for open vocabularies have it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv, self.contrast = nn.Conv2d(3, 8, 3, padding=1), Contrast(form)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Scores."""
        y: Tensor = self.contrast(self.conv(x), w)
        return y


@pytest.mark.parametrize(("form", "fused"), [("slice", True), ("whole", True), ("activated", True), ("other", True)])
def test_the_rank_behind_a_norm_is_known(form: str, fused: bool) -> None:
    model = randomize(Scored(form).eval()).double()
    x, w = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)
    deployed = reptool.deploy(model, (x, w))
    assert any(isinstance(m, nn.BatchNorm2d) for m in deployed.modules()) != fused
    for batch in (1, 3):
        y, v = torch.randn(batch, 3, 5, 5, dtype=torch.float64), torch.randn(batch, 5, 8, dtype=torch.float64)
        torch.testing.assert_close(deployed(y, v), model(y, v), rtol=1e-10, atol=1e-10)


class Pieces(nn.Module):
    """A layer whose output is cut, and something for every piece."""

    def __init__(self, cut: str) -> None:
        super().__init__()
        self.conv, self.norms, self.cut = nn.Conv2d(3, 8, 3), nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2)), cut
        self.scales = nn.ParameterList(torch.rand(4, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """As many pieces as there are."""
        y = self.conv(x)
        pieces = y.split(4, dim=-3) if self.cut == "split" else y.chunk(2, 1)
        if self.cut == "scales":  # without a batch it would cut rows
            return [torch.relu(p * s) for p, s in zip(pieces, self.scales, strict=False)]
        return [torch.relu(n(p)) for n, p in zip(self.norms, pieces, strict=False)]


@pytest.mark.parametrize(("cut", "fused"), [("chunk", True), ("split", True), ("scales", False)])
def test_the_number_of_pieces_is_known_where_norms_say_what_is_cut(cut: str, fused: bool) -> None:
    model = randomize(Pieces(cut).eval()).double()
    deployed = reptool.deploy(model)
    report = reptool.report(deployed)
    assert bool(report.regions) == fused
    assert (reptool.Code.SPECIALIZED in {r.code for r in report.refusals}) != fused
    for size in ((5, 5), (3, 9)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-10, atol=1e-10)


class Divides(nn.Module):
    """Code that asks whether the channels that a layer reads can be divided."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.a, self.b, self.axis = nn.Linear(6, 4), nn.Linear(6, 4), axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return y + self.b(x) if x.size(self.axis) % 3 == 0 else y


@pytest.mark.parametrize("axis", [-1, 0])
def test_the_channels_that_a_layer_reads_are_no_question(axis: int) -> None:
    model, x = nn.Sequential(Divides(axis), nn.ReLU()).eval(), torch.randn(3, 6)
    deployed = reptool.deploy(model, x)
    assert reptool.report(deployed).layers[1] == (1 if axis == -1 else 2)
    torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)
