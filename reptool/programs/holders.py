"""Where the parameters of a graph are kept: in an exported program's state and signature, or in a graph module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputSpec,
    TensorArgument,
)


def _free(path: str, taken: Callable[[str], bool]) -> str:
    """The path, or one like it that is not taken."""
    found, count = path, 0
    while taken(found):
        count += 1
        found = f"{path}_{count}"
    return found


class ProgramHolder:
    """The state and signature of an exported program, copied; the tensors are the program's own.

    Args:
        program: whose they are.
        graph: a copy of its graph.
    """

    def __init__(self, program: ExportedProgram, graph: fx.Graph) -> None:
        self.graph = graph
        self.state, self.constants = dict(program.state_dict), dict(program.constants)
        self.inputs: list[InputSpec] = copy.deepcopy(list(program.graph_signature.input_specs))
        self.outputs: list[OutputSpec] = copy.deepcopy(list(program.graph_signature.output_specs))

    def signature(self) -> ExportGraphSignature:
        """The signature as it is now."""
        return ExportGraphSignature(self.inputs, self.outputs)

    def add(self, parameter: nn.Parameter, name: str) -> fx.Node:
        """A placeholder behind those of the other parameters."""
        at = sum(s.kind is InputKind.PARAMETER for s in self.inputs)
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        behind = next(n for n in self.graph.nodes if n.op != "placeholder")
        first = placeholders[at] if at < len(placeholders) else behind
        with self.graph.inserting_before(first):
            node = self.graph.placeholder(name)
        self.inputs.insert(at, InputSpec(InputKind.PARAMETER, TensorArgument(node.name), node.name))
        self.state[node.name] = parameter
        return node

    def name(self, node: fx.Node, path: str) -> str:
        """Keep a parameter under a path of the state dict."""
        spec = self._spec(node)
        parameter = self.state.pop(str(spec.target))
        path = _free(path, lambda p: p in self.state or p in self.constants)
        self.state[path] = parameter
        node.name = _free("p_" + path.replace(".", "_"), {n.name for n in self.graph.nodes}.__contains__)
        node.target = node.name
        spec.target, spec.arg = path, TensorArgument(node.name)
        return path

    def rename(self, old: fx.Node, new: fx.Node) -> None:
        """An output that was one node is another."""
        for spec in self.outputs:
            if getattr(spec.arg, "name", None) == old.name:
                spec.arg = TensorArgument(new.name)

    def drop(self, node: fx.Node) -> None:
        """Take out a placeholder, and the tensor where no other one reads it."""
        spec = self._spec(node)
        self.inputs.remove(spec)
        if all(s.target != spec.target for s in self.inputs):
            self.state.pop(str(spec.target), None)
            self.constants.pop(str(spec.target), None)
        self.graph.erase_node(node)

    def path(self, node: fx.Node) -> str | None:
        """Where the tensor of a placeholder is kept; None for what is given at every call."""
        target = self._spec(node).target if node.op == "placeholder" else None
        return target if target in self.state or target in self.constants else None

    def _spec(self, node: fx.Node) -> InputSpec:
        return next(s for s in self.inputs if getattr(s.arg, "name", None) == node.name)


class ModuleHolder:
    """The parameters of a graph module that is a copy.

    Args:
        module: the copy.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.waiting: dict[fx.Node, nn.Parameter] = {}

    def add(self, parameter: nn.Parameter, name: str) -> fx.Node:
        """A read of an attribute, in front of all that computes."""
        first = next(n for n in self.module.graph.nodes if n.op != "placeholder")
        with self.module.graph.inserting_before(first):
            node = self.module.graph.create_node("get_attr", name, name=name)
        self.waiting[node] = parameter
        return node

    def name(self, node: fx.Node, path: str) -> str:
        """Keep a parameter at a path of the module."""
        parts = path.replace("-", "_").split(".")
        owner: Any = self.module
        for part in parts[:-1]:
            held = getattr(owner, part, None)
            if not isinstance(held, nn.Module):
                part = _free(part, lambda p, owner=owner: hasattr(owner, p))  # type: ignore[misc]
                held = nn.Module()
                owner.add_module(part, held)
            owner = held
        last = _free(parts[-1], lambda p: hasattr(owner, p))
        owner.register_parameter(last, self.waiting.pop(node))
        node.target = ".".join((*parts[:-1], last))
        return str(node.target)

    def rename(self, old: fx.Node, new: fx.Node) -> None:
        """A graph module has no signature."""

    def drop(self, node: fx.Node) -> None:
        """Take out a read of an attribute, and the attribute where no other node reads it."""
        target = str(node.target)
        self.module.graph.erase_node(node)
        if all(n.op != "get_attr" or n.target != target for n in self.module.graph.nodes):
            owner, _, name = target.rpartition(".")
            delattr(self.module.get_submodule(owner), name)

    def path(self, node: fx.Node) -> str | None:
        """The attribute that a node reads; None for all other nodes."""
        return str(node.target) if node.op == "get_attr" else None
