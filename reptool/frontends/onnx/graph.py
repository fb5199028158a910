"""ONNX graphs as a trace for the planner.

A graph is read node by node in terms of torch (`operators`); initializers and what is computed from them are
constants. What has no counterpart (control flow, custom operators, quantization, shapes computed at run time) stays
as it is. The body of an ``If`` or ``Loop`` is a graph of its own, whose outer values are inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from reptool.frontends.exported import Read
from reptool.frontends.graph import GraphTrace, Stated
from reptool.frontends.onnx.operators import read
from reptool.frontends.onnx.valid import bodies
from reptool.ir.aliasing import resolve
from reptool.ir.trace import Unanswerable

BATCH, PIXELS = 2, 64
"""What a size that the file leaves open is taken for, in front and behind the channels."""
DTYPES: dict[str, torch.dtype] = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16,
    "INT64": torch.int64, "INT32": torch.int32, "INT16": torch.int16, "INT8": torch.int8, "UINT8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_STAY = ("Random", "Bernoulli", "Multinomial", "Dequantize", "Quantize", "DynamicQuantize")
"""Operators that draw numbers, and those of a quantized weight, which is stored as whole numbers for a reason."""
Shape = tuple[int | None, ...]


def read_onnx(graph: Any, opset: int, inferred: Mapping[str, Any], outer: Mapping[str, Tensor] | None = None) -> Read:
    """The trace of a graph.

    Args:
        graph: an `onnx_ir.Graph`.
        opset: version of the default domain.
        inferred: its values with the shapes and types that inference adds, by name.
        outer: constants of the graphs around it.
    """
    return _Reader(graph, opset, inferred, dict(outer or {})).read()


def tensor_of(value: Any) -> Tensor | None:
    """The tensor of an initializer or constant; None where there is none, or none of a type that torch has."""
    held = value.const_value
    producer = value.producer()
    if held is None and producer is not None and producer.op_type == "Constant":
        held = _constant(producer)
    if isinstance(held, Tensor) or held is None:
        return held
    if held.dtype.name not in DTYPES:
        return None
    array = np.array(held.numpy())
    if held.dtype.name == "BFLOAT16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _constant(node: Any) -> Any:
    """What a Constant node holds: a tensor of ONNX, or numbers as one of torch."""
    for name, attribute in node.attributes.items():
        if name == "value":
            return attribute.value
        if name in ("value_float", "value_floats"):
            return torch.tensor(attribute.value, dtype=torch.float32)
        if name in ("value_int", "value_ints"):
            return torch.tensor(attribute.value, dtype=torch.int64)
    return None


class _Reader:
    def __init__(self, graph: Any, opset: int, inferred: Mapping[str, Any], outer: dict[str, Tensor]) -> None:
        self.graph, self.opset, self.inferred, self.outer = graph, opset, inferred, outer
        self.writing = GraphTrace()
        self.known: dict[Any, fx.Node] = {}
        self.origins: dict[fx.Node, list[Any]] = {}

    def read(self) -> Read:
        for value in self.graph.initializers.values():
            tensor = tensor_of(value)
            if tensor is not None:
                self._keep(value, self.writing.constant(str(value.name), tensor))
        for value in self.graph.inputs:
            if value not in self.known:
                made = self.writing.input(_identifier(value), self._declared(value), sizes=_sizes_of(value))
                self._keep(value, made)
        for node in self.graph:
            self._read(node)
        trace = self.writing.done([self.known[v] for v in self.graph.outputs if v in self.known])
        return Read(self.writing, trace, resolve(trace.graph), self.origins, one_dtype=True)

    def _read(self, node: Any) -> None:
        if node.op_type == "Constant" and node.domain == "" and (tensor := tensor_of(node.outputs[0])) is not None:
            self._keep(node.outputs[0], self.writing.constant(str(node.outputs[0].name), tensor))
            return
        self.at = node
        before = self.writing.graph._root._prev
        made = read(node, self, self.opset) if node.domain == "" else None
        if made is None:
            self._erase_after(before)
            folded = self._folded(node) if node.domain == "" else None
            if folded is None:
                self._untouched(node)
                return
            made = [self.writing.constant(str(v.name), t) for v, t in zip(node.outputs, folded, strict=False)]
        for value, one in zip(node.outputs, made if isinstance(made, list) else [made], strict=False):
            self._keep(value, one)

    def _erase_after(self, last: fx.Node) -> None:
        """Take back what was written of a node that stays."""
        node = self.writing.graph._root._prev
        while node is not last:
            earlier = node._prev
            self.writing.graph.erase_node(node)
            node = earlier

    def _folded(self, node: Any) -> list[Tensor] | None:
        """What a node computes from constants alone, by onnx's own reference; None for all others."""
        inputs = [None if v is None else self.constant(v) for v in node.inputs]
        missing = any(t is None for t, v in zip(inputs, node.inputs, strict=True) if v is not None)
        if missing or not inputs or bodies(node) or node.op_type.startswith(_STAY):
            return None
        try:
            from onnx.reference import ReferenceEvaluator

            proto = ir.to_proto(node)
            names = [n for n in proto.input if n]
            given = dict(zip(names, (t.numpy() for t in inputs if t is not None), strict=True))
            found = ReferenceEvaluator(proto, opsets={"": self.opset}).run(None, given)
            return [torch.from_numpy(np.array(a)) for a in found]
        except Exception:  # onnx is not installed, or its reference does not know the operator
            return None

    def _untouched(self, node: Any) -> None:
        """A node that stays; what its bodies read of this graph it reads as well."""
        read = [v for v in (*node.inputs, *_captured(node)) if v is not None]
        values = [self._outer(v) for v in read if v in self.known or v.graph is not self.graph]
        made = self.writing.untouched(node.op_type, [v for v in values if v is not None])
        if len(node.outputs) == 1:
            declared = self._declared(node.outputs[0])
            made.meta["kind"] = "tensor"
            self.writing._known(made, declared)
            self._keep(node.outputs[0], made)
            return
        for value in node.outputs:
            one = self.writing.untouched(f"{node.op_type} output", [made])
            one.meta["kind"] = "tensor"
            self._keep(value, self.writing._known(one, self._declared(value)))

    def _keep(self, value: Any, node: fx.Node) -> None:
        self.known[value] = node
        self.origins.setdefault(node, []).append(value)

    def _outer(self, value: Any) -> fx.Node | None:
        """The node of a value, which may be one of a graph around this one."""
        if value not in self.known:
            tensor = self.outer.get(str(value.name))
            if tensor is None:
                tensor = tensor_of(value)
            made = (
                self.writing.constant(str(value.name), tensor)
                if tensor is not None
                else self.writing.input(_identifier(value), self._declared(value))
            )
            self._keep(value, made)
        return self.known[value]

    def _declared(self, value: Any) -> Any:
        """A fake of what the file says of a value, None where that is not enough."""
        shape, dtype = self.shape(value), self.dtype(value)
        if shape is None or dtype is None:
            return None
        sizes = [(BATCH if i == 0 else PIXELS) if s is None else s for i, s in enumerate(shape)]
        return self.writing.fake(sizes, dtype)

    # --- what operators ask for
    def value(self, given: Any) -> fx.Node | None:
        """The node of an input."""
        return None if given is None else self._outer(given)

    def constant(self, given: Any) -> Tensor | None:
        """The tensor of an input that is constant."""
        node = self.value(given)
        if node is None or not node.meta["const"]:
            return None
        try:
            found = self.writing.evaluate(node)
        except Unanswerable:
            return None
        return found if isinstance(found, Tensor) else None

    def shape(self, given: Any) -> Shape | None:
        """The sizes that the file fixes."""
        tensor = None if given is None or given not in self.known else self.constant(given)
        if tensor is not None:
            return tuple(tensor.shape)
        held = None if given is None else given.shape
        if held is None and given is not None and str(given.name) in self.inferred:
            held = self.inferred[str(given.name)].shape
        return None if held is None else tuple(s if isinstance(s, int) else None for s in held)

    def dtype(self, given: Any) -> torch.dtype | None:
        """The dtype that the file or the types of its operators fix."""
        inferred = self.inferred.get(str(given.name))
        kinds = [v.dtype for v in (given, inferred) if v is not None and v.dtype is not None]
        return DTYPES.get(kinds[0].name) if kinds else None

    def held(self, tensor: Tensor) -> fx.Node:
        """Write a constant that was worked out."""
        return self.writing.constant(str(self.at.outputs[0].name), tensor)

    def call(self, function: Callable[..., Any], *args: Any, kind: str = "tensor") -> fx.Node:
        """Write one operation."""
        return self.writing.call(function, args, {}, kind=kind, path=str(self.at.name or self.at.op_type))

    def size(self, value: fx.Node, axis: int) -> fx.Node:
        """Write the size of a value along an axis."""
        return self.writing.size(value, axis)


def _identifier(value: Any) -> str:
    """The name of a value as fx names nodes."""
    return "".join(c if c.isalnum() else "_" for c in f"v_{value.name}")


def _sizes_of(value: Any) -> list[Stated] | None:
    """The sizes of an input: numbers are what every run is held to, names are not."""
    if value.shape is None:
        return None
    named = _identifier(value)
    return [(s, {}) if type(s) is int and s > 0 else (1, {f"{named}[{i}]": 1}) for i, s in enumerate(value.shape)]


def _captured(node: Any) -> list[Any]:
    """The values around a node that its bodies read."""
    found: list[Any] = []
    for graph in bodies(node):
        inside = (
            {v for n in graph.all_nodes() for v in n.outputs} | set(graph.inputs) | set(graph.initializers.values())
        )
        for other in graph.all_nodes():
            found += [v for v in other.inputs if v is not None and v not in inside]
        found += [v for v in graph.outputs if v not in inside]
    return found
