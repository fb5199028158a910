"""Both graphs say what runs: every operation of a model before, and afterwards each region as one layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import reptool
from reptool.blocks import DiverseBranchBlock, RepVGGBlock
from reptool.report.picture.graph import Graph, Operation


class Net(nn.Module):
    """Blocks, a norm that stays, and a shortcut around them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = RepVGGBlock(3, 8), DiverseBranchBlock(8, 8)
        self.act, self.norm, self.head = nn.GELU(), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        assert x.shape[1] == 8
        x = self.norm(self.act(self.block(x))) + x
        return self.head(x.mean((2, 3)))


def graph() -> tuple[Graph, reptool.Report]:
    found = reptool.explain(Net().eval(), torch.randn(1, 3, 8, 8))
    (made,) = found.graphs
    return made, found


def kinds(operations: list[Operation]) -> list[str]:
    return [o.kind for o in operations]


def test_before_each_operation_is_there_and_knows_its_region() -> None:
    made, found = graph()
    assert kinds(made.before)[0] == "input"
    assert kinds(made.before)[-1] == "output"
    assert kinds(made.before).count("BatchNorm2d") == found.norms[0]
    absorbed = {o.place for o in made.before if o.region == 0}
    assert {"stem.branches.dense.conv", "stem.branches.point.bn"} <= absorbed
    assert not any(o.kind in ("getattr", "eq", "_assert") for o in made.before)


def test_after_each_region_is_one_layer_that_reads_its_root() -> None:
    made, found = graph()
    layers = {o.region: o for o in made.after if o.region is not None}
    assert [layers[i].place for i in range(len(found.regions))] == [r.layer for r in found.regions]
    assert [layers[i].kind for i in range(len(found.regions))] == ["Conv2d", "Conv2d"]
    assert kinds(made.after) == [
        "input", "Conv2d", "ReLU", "Conv2d", "Identity", "GELU", "BatchNorm2d", "add", "mean", "Linear", "output",
    ]  # fmt: skip
    for i, one in enumerate(made.after[1:], 1):
        assert one.sources, one
        assert all(s < i for s in one.sources)
    add = next(o for o in made.after if o.kind == "add")
    assert sorted(made.after[s].kind for s in add.sources) == ["BatchNorm2d", "ReLU"]


def test_what_was_left_says_why() -> None:
    made, _ = graph()
    norm = next(o for o in made.after if o.place == "norm")
    assert norm.refused.startswith("no-layer: ")


def test_layers_that_took_another_place_are_called_by_it() -> None:
    deployed = reptool.deploy(Net().eval(), torch.randn(1, 3, 8, 8), unwrap=True)
    (made,) = reptool.report(deployed).graphs
    assert {o.place for o in made.after if o.region is not None} >= {"stem.branches"}
