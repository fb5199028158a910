"""`Collapse`: what `deploy` does to a graph module of ATen operators, as a pass of `torch.fx`'s pass managers."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from reptool.api.deploy import deploy
from reptool.api.reporting import report


class Collapse(PassBase):
    """Collapses every affine region of a graph whose parameters it holds (``program.module()``).

    Args:
        options: those of `reptool.deploy` that are for programs: `rules`, `force`, `include`, `exclude`, `verify`.

    >>> import torch
    >>> from torch.fx.passes.infra.pass_manager import PassManager
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    >>> module = torch.export.export(model, (torch.ones(1, 3, 5, 5),)).module()
    >>> made = PassManager([Collapse()])(module)
    >>> made.modified, [str(n.target) for n in made.graph_module.graph.nodes if n.op == "call_function"]
    (True, ['aten.conv2d.default'])
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def call(self, graph_module: fx.GraphModule) -> PassResult:
        """The collapsed copy of a graph module, and whether anything was collapsed."""
        made = deploy(graph_module, **self.options)
        return PassResult(made, bool(report(made).regions))
