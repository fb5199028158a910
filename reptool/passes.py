"""What `deploy` does to graphs of ATen operators, as a pass: of `torch.fx`'s pass managers, and of `torch.compile`."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import _DisablePythonDispatcher
from torch._guards import TracingContext
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.utils._python_dispatch import _disable_current_modes

from reptool import __version__
from reptool.api.deploy import deploy
from reptool.api.reporting import report
from reptool.errors import RegionWarning, ReptoolError, warn

log = logging.getLogger("reptool.passes")
_GIVEN = "given_"
"""What the weights of a graph are called while it is collapsed."""


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


class CompilePass(CustomGraphPass):
    """Collapses what `torch.compile` compiles with frozen weights: `reptool.compile_pass`.

    A pass of inductor on graphs whose weights are constants, which `freezing` makes of them where no gradients are
    wanted; every other graph stays as it is. How many layers became how many is logged under ``reptool.passes``.

    >>> from torch._inductor import config
    >>> with config.patch(freezing=True, joint_custom_pre_pass=compile_pass):  # or set these two for good
    ...     fast = torch.compile(nn.Conv2d(3, 4, 3))  # compiled when it is called, without gradients
    """

    def __call__(self, graph: fx.Graph) -> None:
        """Collapse a graph in place; one that reptool cannot collapse stays as it is, with a warning."""
        held, owner = _frozen(graph), graph.owning_module
        if not held or owner is None:
            return
        try:
            with _disable_current_modes(), _DisablePythonDispatcher():
                made = deploy(_with_constants(owner, held))
                found = report(made)
                if found.regions:
                    _put_back(owner, made, list(held))
        except ReptoolError as error:
            warn(f"torch.compile goes on with the graph as it was: {error}", RegionWarning)
            return
        log.info("torch.compile: %d layers became %d, %d norms became %d", *found.layers, *found.norms)

    def uuid(self) -> Any:
        """What a compiled graph is kept under, beside the graph itself."""
        return "reptool.compile_pass", __version__


compile_pass = CompilePass()
"""What to set `torch._inductor.config.joint_custom_pre_pass` to, with `freezing`."""


def _frozen(graph: fx.Graph) -> dict[fx.Node, Tensor]:
    """The inputs of a graph that are weights which inductor freezes, none where it does not."""
    context = TracingContext.try_get()
    if context is None or context.fw_metadata is None or torch.is_grad_enabled():
        return {}
    known, nodes = context.fw_metadata, graph.find_nodes(op="placeholder")
    if len(known.input_info) != len(nodes):
        return {}  # what is compiled for gradients has more inputs
    if not config.freezing:
        warn("reptool.compile_pass does nothing without torch._inductor.config.freezing = True", RegionWarning)
        return {}
    handed_out = {o.base_idx for o in known.output_info}
    weights = enumerate(zip(nodes, context.params_flat_unwrap_subclasses or (), known.input_info, strict=False))
    return {
        node: tensor
        for i, (node, tensor, info) in weights
        if not (info.mutates_data or info.mutates_metadata or i in handed_out)
    }


def _with_constants(owner: fx.GraphModule, held: dict[fx.Node, Tensor]) -> fx.GraphModule:
    """A copy of a graph that reads its weights from a module, as buffers."""
    copied = copy.deepcopy(owner.graph)
    twins = dict(zip(owner.graph.nodes, copied.nodes, strict=True))
    module = fx.GraphModule(owner, copied)
    first = next(n for n in copied.nodes if n.op != "placeholder")
    for i, (node, tensor) in enumerate(held.items()):
        module.register_buffer(f"{_GIVEN}{i}", tensor.detach())
        with copied.inserting_before(first):
            read = copied.create_node("get_attr", f"{_GIVEN}{i}")
        read.meta.update(node.meta)
        twins[node].replace_all_uses_with(read)
    return module


def _put_back(owner: fx.GraphModule, made: fx.GraphModule, held: list[fx.Node]) -> None:
    """Let a module have the graph of another one: weights that are still read are inputs again, new ones buffers."""
    inputs = {n.name: n for n in made.graph.find_nodes(op="placeholder")}
    for node in made.graph.find_nodes(op="get_attr"):
        target = str(node.target)
        tensor = getattr(made, target)
        if isinstance(tensor, nn.Parameter):  # what was written is one
            node.target = f"reptool_{target}"
            owner.register_buffer(node.target, tensor.detach())
        elif target.startswith(_GIVEN):
            node.replace_all_uses_with(inputs[held[int(target.removeprefix(_GIVEN))].name])
            made.graph.erase_node(node)
    owner.graph = made.graph
