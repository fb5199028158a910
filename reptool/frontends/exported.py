"""Exported programs and graph modules of ATen operators, as a trace for the planner.

Nothing in such a graph has Python code of its own: a parameter is a constant, every other input is a value, and an
operator that no lift knows (control flow, custom operators) stays as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from reptool.errors import UnsupportedModelError
from reptool.frontends.aten import gives_first_alone, in_terms_of_torch
from reptool.frontends.graph import GraphTrace, Stated
from reptool.ir.aliasing import Reads, resolve
from reptool.ir.trace import Trace

_HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@dataclass
class Read:
    """A graph as the planner reads it.

    Args:
        writing: what evaluates its constants and tells shapes.
        trace: its operations.
        reads: the version of a value that each operation sees.
        one_dtype: whether an operation takes operands of one dtype alone.
        origins: a node of the trace -> what holds its value in the graph (nodes of fx, values of ONNX).
    """

    writing: GraphTrace
    trace: Trace
    reads: Reads
    origins: dict[fx.Node, list[Any]] = field(default_factory=dict)
    one_dtype: bool = False


def read_exported(program: ExportedProgram | fx.GraphModule) -> Read:
    """The trace of an exported program, which checks the sizes that it fixes, or of a graph module of ATen operators.

    Raises:
        UnsupportedModelError: its weights are fakes.
    """
    graph = program.graph
    held = dict(_held_by_program(program) if isinstance(program, ExportedProgram) else _held_by_module(program))
    for path, tensor in held.values():
        if isinstance(tensor, torch._subclasses.FakeTensor) or tensor.is_meta:
            raise UnsupportedModelError(f"{path!r} has no data (a fake tensor); give the program with its weights")
    while True:
        made = _Reader(graph, held, isinstance(program, ExportedProgram)).read()
        written = _written_constants(made)
        if not written:
            return made
        held = {n: v for n, v in held.items() if n not in written}


def _held_by_program(program: ExportedProgram) -> Iterator[tuple[fx.Node, tuple[str, Tensor]]]:
    changed = set(program.graph_signature.buffers_to_mutate.values())
    specs = {s.arg.name: s for s in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        spec = specs.get(node.name)
        if node.op != "placeholder" or spec is None or spec.kind not in _HELD or spec.target in changed:
            continue
        tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if isinstance(tensor, Tensor):
            yield node, (str(spec.target), tensor)


def _held_by_module(module: fx.GraphModule) -> Iterator[tuple[fx.Node, tuple[str, Tensor]]]:
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for name in str(node.target).split("."):
                value = getattr(value, name, None)
            if isinstance(value, Tensor):
                yield node, (str(node.target), value)


def _written_constants(made: Read) -> set[fx.Node]:
    """The parameters and buffers that an operation writes in place."""
    roots = {made.reads.storage.get(w, w) for w in made.reads.mutates.values()}
    return {o for root in roots if root.meta["const"] for o in made.origins.get(root, ())}


class _Reader:
    def __init__(self, graph: fx.Graph, held: dict[fx.Node, tuple[str, Tensor]], fixes: bool) -> None:
        self.graph, self.held, self.fixes = graph, held, fixes
        self.writing = GraphTrace()
        self.known: dict[fx.Node, Any] = {}
        self.origins: dict[fx.Node, list[fx.Node]] = {}

    def read(self) -> Read:
        outputs: list[fx.Node] = []
        for node in self.graph.nodes:
            if node.op == "output":
                outputs = [v for n in node.all_input_nodes if isinstance(v := self.known.get(n), fx.Node)]
                continue
            made = self._read(node)
            self.known[node] = made
            val = node.meta.get("val")
            if self.fixes and isinstance(made, fx.Node) and isinstance(val, Tensor):
                made.meta["fixed"] = tuple(map(_fixed, val.shape))
            if isinstance(made, fx.Node) and not gives_first_alone(node):
                self.origins.setdefault(made, []).append(node)
        trace = self.writing.done(outputs)
        return Read(self.writing, trace, resolve(trace.graph), self.origins)

    def _read(self, node: fx.Node) -> Any:
        if node in self.held:
            return self.writing.constant(*self.held[node])
        value, kind = self._fake(node.meta.get("val")), _kind(node.meta.get("val"))
        if node.op == "placeholder":
            return self.writing.input(str(node.target), value, kind, sizes_of(node.meta.get("val")))
        if node.op == "get_attr":
            return None  # a branch of control flow, or an object
        taken_from = node.args[0] if node.target is operator.getitem else None
        if isinstance(taken_from, fx.Node) and gives_first_alone(taken_from):
            return self.known[taken_from]
        if node.target is torch.ops.aten.sym_size.int and isinstance(self.known.get(node.args[0]), fx.Node):  # type: ignore[arg-type]
            return self.writing.size(self.known[node.args[0]], int(node.args[1]), value)  # type: ignore[arg-type, index]
        stays = not isinstance(node.target, OpOverload) and node.target is not operator.getitem
        if stays or any(n not in self.known or self.known[n] is None for n in node.all_input_nodes):
            return self._untouched(node, kind, value)
        function: Any
        function, args, kwargs = operator.getitem, node.args, dict(node.kwargs)
        if taken_from is None:
            function, args, kwargs = in_terms_of_torch(node)
        if gives_first_alone(node):
            val = node.meta.get("val")
            value, kind = (None if val is None else self._fake(val[0])), "tensor"
        given: Any = fx.node.map_arg((tuple(args), dict(kwargs)), self.known.__getitem__)
        sizes = sizes_of(node.meta.get("val"))
        return self.writing.call(function, *given, kind=kind, value=value, path=module_of(node), sizes=sizes)

    def _untouched(self, node: fx.Node, kind: str, value: Any) -> fx.Node:
        values = [v for n in node.all_input_nodes if isinstance(v := self.known.get(n), fx.Node)]
        kind = "unknown" if kind == "tensor" else kind
        sizes = sizes_of(node.meta.get("val"))
        return self.writing.untouched(str(node.target), values, kind=kind, value=value, sizes=sizes)

    def _fake(self, value: Any) -> Any:
        """A fake of sizes that are numbers, of one whose sizes may be symbols; None where one has no value."""
        if isinstance(value, Tensor):
            sizes = [hint(s) for s in value.shape]
            known = [s for s in sizes if s is not None]
            return self.writing.fake(known, value.dtype, value.device) if len(known) == len(sizes) else None
        if isinstance(value, (tuple, list)):
            parts = [self._fake(v) for v in value]
            return None if any(p is None for p in parts) else type(value)(parts)
        return hint(value) if isinstance(value, (int, torch.SymInt)) else None


def sizes_of(value: Any) -> list[Stated] | None:
    """The sizes of a value, or the number that it is, as the exporter proved them."""
    sizes = list(value.shape) if isinstance(value, Tensor) else [value]
    if not all(isinstance(s, (int, torch.SymInt)) for s in sizes):
        return None
    return [(s, {}) if isinstance(s, int) else _monomial(s.node.expr) for s in sizes]


def _monomial(expression: Any) -> Stated:
    """A number and the powers of what it is multiplied by; any other expression is a symbol of its own."""
    number, rest = expression.as_coeff_Mul()
    powers = rest.as_powers_dict()
    if number.is_Integer and number > 0 and all(p.is_Integer and p > 0 for p in powers.values()):
        return int(number), {str(s): int(p) for s, p in powers.items()}
    return 1, {str(expression): 1}


def hint(size: int | torch.SymInt) -> int | None:
    """The value that a size had when the program was exported; None for one that depends on data."""
    if isinstance(size, int):
        return size
    found = size.node.hint if size.node.has_hint() else None
    return None if found is None else int(found)


def _fixed(size: int | torch.SymInt) -> int | None:
    """A size that is the same at every call; None for a symbol."""
    return size if isinstance(size, int) else None


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, (tuple, list)):
        return "sequence"
    return "number" if isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)) else "unknown"


def module_of(node: fx.Node) -> str:
    """The path of the module in whose code an operation stood, as the exporter wrote it down; '' where it did not."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    return path.removeprefix("L['self']").lstrip(".")


def is_exported(module: nn.Module) -> bool:
    """Whether this is a graph module of ATen operators: what nobody writes and `torch.export` makes of a layer."""
    return isinstance(module, fx.GraphModule) and any(map(_is_layer, module.graph.nodes))


def _is_layer(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and str(node.target).startswith(_LAYERS)


_LAYERS = ("aten.conv", "aten.linear", "aten.batch_norm", "aten._native_batch_norm", "aten.native_batch_norm")
