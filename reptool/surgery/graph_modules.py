"""Graph modules: their code is their graph, so that a method written anew is traced into one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reptool.runtime.method import Method
from reptool.runtime.subclass import derive


def rewrite_graph_module(module: torch.fx.GraphModule, methods: tuple[Method, ...]) -> None:
    """A GraphModule's code is its graph: copying and recompiling know nothing else."""
    own = module.__class__
    module.__class__ = derive(own, methods)
    graph = _Flat().trace(module)
    for node in graph.nodes:
        if isinstance(node.type, str):  # an annotation that nobody evaluated: fx would look for it as an object
            node.type = None
    module.__class__ = own
    module.graph = graph


class _Written(torch.fx.Proxy):
    """A value that code writes into: with fx's own, ``x += y`` would be another value and ``x[0] = y`` an error."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _writing(function: Callable[..., Any]) -> Callable[[_Written, Any], Any]:
    def write(self: _Written, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return write


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"):
    setattr(_Written, f"__{_name}__", _writing(getattr(operator, _name)))


class _Flat(torch.fx.Tracer):
    """Follows one forward and opens no module."""

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        """A value that may be written."""
        return _Written(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every module stays one node."""
        return True
