"""The original operations of a trace, run in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from reptool.ir.aliasing import Reads
from reptool.ir.computed_weights import computed_tensors, exact_tensors, has_computed_weight, set_plain
from reptool.ir.kinds.casts import cast_target
from reptool.lift.layers.transposed import asks_for_size
from reptool.models.copies import copy_in, full_copy
from reptool.plan.inference.facts import Facts


class Originals:
    """Runs original operations in float64."""

    def __init__(self, facts: Facts, reads: Reads) -> None:
        self.facts, self.reads = facts, reads
        self.modules: dict[fx.Node, nn.Module] = {}
        self.instead: dict[fx.Node, fx.Node] = {}  # what stands for the scaled value that others read
        self.passed: set[fx.Node] = set()  # what reads the value as it is

    def _read_as(self, node: fx.Node, value: fx.Node) -> list[fx.Node]:
        """The values that a node may see where it reads one, the right one first."""
        seen = self.reads.of(node, value)
        scaled = None if node in self.passed else self.instead.get(seen or value)
        return [v for v in (scaled, seen, value) if v is not None]

    def arguments(self, node: fx.Node, memo: dict[fx.Node, Any]) -> tuple[Any, Any]:
        """What a node is called with."""

        def value(n: fx.Node) -> Any:
            for candidate in self._read_as(node, n):
                if candidate in memo:
                    return memo[candidate]
            if n.meta["const"]:
                return self.facts.exact(n)
            if n.op == "placeholder":
                raise RuntimeError(f"nothing is known of {n.name}")
            memo[n] = self.run(n, memo)
            return memo[n]

        # neither the size that an input of the model's own has, nor its dtype
        alone = asks_for_size(node) or cast_target(node) is not None
        args = fx.node.map_arg(node.args[:1] if alone else node.args, value)
        return args, fx.node.map_arg({} if alone else node.kwargs, value)

    def run(self, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
        """The value of a node, from the values in `memo` and those that can be worked out from them."""
        args, kwargs = self.arguments(node, memo)
        if cast_target(node) is not None:
            return args[0]  # which stays in float64
        if node.op == "call_module":
            if node not in self.modules:
                self.modules[node] = _double(node.meta["module"])
            return self.modules[node](*args, **kwargs)
        if self.reads.mutates.get(node) is not None:
            args = (args[0].clone(), *args[1:])
        result = self.facts.recorder.known.run(node, args, kwargs)
        return args[0] if result is None else result


def read_by(norm: fx.Node, reads: Reads) -> fx.Node:
    """The value that a norm reads."""
    node = next(n for n in norm.all_input_nodes if not n.meta["const"])
    return reads.of(norm, node) or node


def _double(module: nn.Module) -> nn.Module:
    if _is_plain(module):
        return _twin(module)
    made = copy_in(module, torch.float64)
    if not has_computed_weight(made):
        return made
    try:
        computed_tensors(made, "weight", "bias")
    except Exception:  # the code of a computed weight refuses float64: its values are those of the model
        values = exact_tensors(module, "weight", "bias")
        made = full_copy(module).cpu()
        set_plain(made)
        for name, value in zip(("weight", "bias"), values, strict=True):
            if value is not None:
                made.register_parameter(name, nn.Parameter(value.cpu()))
    return made


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a layer of torch with nothing added, and computes by its settings and tensors alone."""
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    return (
        type(module).__module__.startswith("torch.nn.modules.")
        and not (module._modules or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
    )


def _twin(module: nn.Module) -> nn.Module:
    """A layer that shares all but its tensors, which are copies on the CPU, in float64 where they are no counts."""
    made: nn.Module = object.__new__(type(module))
    vars(made).update(vars(module))
    for table in ("_parameters", "_buffers"):
        held: dict[str, Tensor | None] = getattr(module, table)
        vars(made)[table] = {n: None if t is None else _wide(t) for n, t in held.items()}
    return made


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype, copy=True)
