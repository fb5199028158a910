"""`Collapse` in a pass manager."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import export
from torch.fx.passes.infra.pass_manager import PassManager

import reptool
from reptool.passes import Collapse
from reptool.testing import randomize


def test_a_pass_manager_collapses_and_says_whether_it_did() -> None:
    torch.manual_seed(0)
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    module = export(model, (x,)).module()
    made = PassManager([Collapse()])(module)
    assert made.modified
    assert reptool.report(made.graph_module).norms == (1, 0)
    torch.testing.assert_close(made.graph_module(x), model(x))
    assert not PassManager([Collapse()])(made.graph_module).modified
    assert not PassManager([Collapse(exclude="0")])(module).modified
