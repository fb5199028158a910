"""Writes layers into an ONNX graph: new initializers and nodes, and nothing left of what they replace."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx

from reptool.algebra.kernel import Border
from reptool.ir.ops import View
from reptool.passages.spread import origin
from reptool.plan.terms import Tree
from reptool.programs.collapse import Collapsed
from reptool.programs.layers import Layer, Piece
from reptool.programs.writing import ordered
from reptool.refusal import Code, Refusal
from reptool.rewrite.lower import Geometry

_MODES = {"reflect": ("reflect", 1), "replicate": ("edge", 1), "circular": ("wrap", 19)}
"""The modes of Pad, and the opset from which on it has them."""
PADS_AS_INPUT = 11


def why_not(shape: Geometry, opset: int) -> Refusal | None:
    """Why a layer of this geometry is no sequence of ONNX operators; None where it is."""
    if shape.kind == "deformable":
        return Refusal(Code.LAYOUT, "a deformable convolution is no operator that is written")
    mode = next((m for m in (shape.padding_mode, shape.outer_mode) if m in _MODES), None)
    if mode is not None and opset < _MODES[mode][1]:
        return Refusal(Code.BORDER_MODE, f"opset {opset} has no {mode} padding")
    return None


class OnnxWriter:
    """Writes what was worked out into the graph that was read.

    Args:
        graph: the `onnx_ir.Graph`.
        collapsed: what is to be written.
        opset: version of the default domain.
        listed: whether initializers are listed among the inputs, as files before IR version 4 do.
    """

    def __init__(self, graph: Any, collapsed: Collapsed, opset: int, listed: bool) -> None:
        self.graph, self.collapsed, self.opset, self.listed = graph, collapsed, opset, listed
        self.mine: dict[fx.Node, list[Any]] = {k: list(v) for k, v in collapsed.read.origins.items()}
        self.new = set[Any]()
        self.taken = {str(v.name) for n in graph.all_nodes() for v in n.outputs}
        self.taken |= {str(v.name) for v in graph.inputs} | set(graph.initializers)
        self.at: Any = None

    def write(self) -> dict[Layer, str]:
        """The name of each layer's weight."""
        made: dict[Layer, list[tuple[Any, Any]]] = {}
        for layer in self.collapsed.layers:
            group = self.collapsed.found.groups.get(layer.region.value)
            if group is None:
                y, made[layer] = self._emitted(layer, layer.region.value)
                self._handed_on(origin(layer.region.value), y)
            elif layer not in made:
                made |= self._sum(group.tree)
        for spread in self.collapsed.found.spreads:  # what reads a norm that others took reads what the norm reads
            source = self.mine[origin(spread.source)][-1]
            self.at = self.mine[spread.norm][0].producer()
            if source not in self.mine[spread.norm]:
                self._handed_on(spread.norm, source)
        self._erase()
        return {layer: next(self._named(layer, *pair) for pair in held) for layer, held in made.items()}

    # --- layers
    def _emitted(self, layer: Layer, value: fx.Node) -> tuple[Any, list[tuple[Any, Any]]]:
        """Write one layer where a value is computed; its output, and the weight and bias of each of its operators."""
        self.at = self.mine[origin(value)][0].producer()
        total, held = None, []
        for piece in layer.pieces:
            y, weight, bias = self._piece(piece)
            held.append((weight, bias))
            total = y if total is None else self._node("Add", [total, y])
        return self._viewed(layer, total), held

    def _piece(self, piece: Piece) -> tuple[Any, Any, Any]:
        """Write one operator, and what moves positions around it; the output, weight and bias."""
        given = [self.mine[origin(value)][-1] for value in piece.reads]
        x = given[0] if len(given) == 1 else self._node("Concat", given, axis=1)
        for node in piece.before:
            x = self._copied(node, x, piece.shape.in_channels)
        weight, bias = self._tensor(piece.weight), None if piece.bias is None else self._tensor(piece.bias)
        kind = piece.shape.kind
        if kind == "linear":
            y, weight = self._linear(piece, x, weight, bias)
        elif kind == "transposed":
            y = self._transposed(piece, x, weight, bias)
        else:
            y = self._conv(piece, x, weight, bias)
        for node in piece.behind:
            y = self._copied(node, y, piece.shape.out_channels)
        return y, weight, bias

    def _copied(self, node: fx.Node, y: Any, channels: int) -> Any:
        """What moves the positions of one value, of another one of so many channels."""
        old = self.mine[node][0].producer()
        inputs = [y, *old.inputs[1:]]
        if old.op_type == "Resize" and len(inputs) > 3 and inputs[3] is not None:  # it is told all sizes
            sizes = torch.from_numpy(inputs[3].const_value.numpy().copy())
            sizes[1] = channels
            inputs[3] = self._tensor(sizes)
        return self._node(old.op_type, inputs, attributes=list(old.attributes.values()))

    def _linear(self, piece: Piece, x: Any, weight: Any, bias: Any) -> tuple[Any, Any]:
        if self.collapsed.facts.rank(piece.reads[0]) == 2:
            return self._node("Gemm", [x, weight, *([] if bias is None else [bias])], transB=1), weight
        del self.graph.initializers[weight.name]
        turned = self._tensor(piece.weight.t().contiguous())
        y = self._node("MatMul", [x, turned])
        return (y if bias is None else self._node("Add", [y, bias])), turned

    def _transposed(self, piece: Piece, x: Any, weight: Any, bias: Any) -> Any:
        shape = piece.shape
        return self._node(
            "ConvTranspose", [x, weight, *([] if bias is None else [bias])], kernel_shape=list(shape.kernel_size),
            strides=list(shape.stride), dilations=list(shape.dilation), group=shape.groups,
            pads=[*_ints(shape.padding), *_ints(shape.padding)], output_padding=list(shape.output_padding),
        )  # fmt: skip

    def _conv(self, piece: Piece, x: Any, weight: Any, bias: Any) -> Any:
        shape, axes = piece.shape, piece.axes
        mode = next((a.border.value for a in axes if a.reads_outside and a.border is not Border.ZEROS), "")
        before, after = [a.before for a in axes], [a.after for a in axes]
        if mode or min(before + after) < 0:
            x = self._padded(x, before, after, mode)
            before = after = [0] * len(axes)
        return self._node(
            "Conv", [x, weight, *([] if bias is None else [bias])], kernel_shape=list(shape.kernel_size),
            strides=list(shape.stride), dilations=list(shape.dilation), group=shape.groups, pads=[*before, *after],
        )  # fmt: skip

    def _padded(self, x: Any, before: list[int], after: list[int], mode: str) -> Any:
        pads = [0, 0, *before, 0, 0, *after]
        name = _MODES[mode][0] if mode else "constant"
        if self.opset < PADS_AS_INPUT:
            return self._node("Pad", [x], pads=pads, mode=name)
        return self._node("Pad", [x, self._tensor(torch.tensor(pads))], mode=name)

    def _viewed(self, layer: Layer, y: Any) -> Any:
        """The views that stay behind a layer."""
        position = self.collapsed.read.reads.position
        for node in sorted(layer.region.form.ops, key=position.__getitem__):
            op = self.collapsed.found.ops[node]
            if isinstance(op, View) and node in self.mine:  # of an operator of several axes the last one alone is there
                old = self.mine[node][0].producer()
                read = {v for n in (origin(op.source), node.all_input_nodes[0]) for v in self._values_of(n)}
                inputs = [y if v in read else v for v in old.inputs]
                y = self._node(old.op_type, inputs, attributes=list(old.attributes.values()))
        return y

    def _values_of(self, node: fx.Node) -> list[Any]:
        """The values that hold what a node gives, or what the views read of which it is a part."""
        op = self.collapsed.found.ops.get(node)
        while node not in self.mine and isinstance(op, View):
            node = op.source
            op = self.collapsed.found.ops.get(node)
        return list(self.mine.get(node, ()))

    # --- sums of groups of terms
    def _sum(self, tree: Tree) -> dict[Layer, list[tuple[Any, Any]]]:
        found = self.collapsed.found
        groups = {found.groups.get(layer.region.value): layer for layer in self.collapsed.layers}
        chosen = {g: layer for g, layer in groups.items() if g is not None and g.tree is tree}
        made: dict[Layer, list[tuple[Any, Any]]] = {}
        terms: list[tuple[Any, float]] = []
        for group, layer in chosen.items():
            y, made[layer] = self._emitted(layer, tree.top)
            terms.append((y, group.number))
        terms += [(self.mine[origin(t)][-1], number) for t, number in tree.rest(list(chosen))]
        self.at = self.mine[tree.top][0].producer()
        dtype = next(iter(chosen.values())).pieces[0].weight.dtype
        total: Any = None
        for value, number in ordered(terms):
            if total is not None and number == -1:
                total = self._node("Sub", [total, value])
                continue
            if number != 1:
                value = self._node("Mul", [value, self._tensor(torch.tensor(number, dtype=dtype))])
            total = value if total is None else self._node("Add", [total, value])
        self._handed_on(tree.top, total)
        return made

    # --- the graph
    def _node(self, kind: str, inputs: list[Any], attributes: Iterable[Any] = (), **given: Any) -> Any:
        """A new node in front of the one that is replaced; its output."""
        made = ir.Node(
            "", kind, inputs, [*attributes, *ir.convenience.convert_attributes(given)],
            name=self._free(f"{self.at.name or self.at.op_type}_{kind}"),
        )  # fmt: skip
        (y,) = made.outputs
        y.name = self._free(f"{made.name}_output")
        y.type = self.mine_type
        self.graph.insert_before(self.at, made)
        self.new.add(made)
        return y

    @property
    def mine_type(self) -> Any:
        """The type of what is replaced, which is that of all that is written for it."""
        return self.at.outputs[0].type

    def _tensor(self, tensor: Tensor) -> Any:
        """A new initializer."""
        name = self._free("reptool")
        held = ir.tensor_adapters.TorchTensor(tensor.contiguous(), name=name)
        value = ir.Value(name=name, const_value=held, shape=ir.Shape(tensor.shape), type=ir.TensorType(held.dtype))
        self.graph.register_initializer(value)
        if self.listed:
            self.graph.inputs.append(value)
        return value

    def _free(self, name: str) -> str:
        found = next(n for i in itertools.count() if (n := f"{name}_{i}" if i else name) not in self.taken)
        self.taken.add(found)
        return found

    def _handed_on(self, value: fx.Node, y: Any) -> None:
        """All that read a value read another one, which takes its name where the graph gives it out."""
        for old in self.mine[value]:
            y.shape = y.shape or old.shape
            if not old.is_graph_output():
                old.replace_all_uses_with(y)
                continue
            out = y if not y.is_graph_output() else self._node("Identity", [y])
            name, old.name = old.name, self._free(f"{old.name}_replaced")
            old.replace_all_uses_with(out, replace_graph_outputs=True)
            out.name, out.shape, out.type = name, old.shape, old.type
        self.mine[value] = [*self.mine[value], y]

    def _erase(self) -> None:
        """Take out nodes that nobody reads any more, of those that were replaced and of constants they were made of."""
        found = self.collapsed.found
        ops = {n for layer in self.collapsed.layers for n in layer.region.form.ops}
        values = [layer.region.value for layer in self.collapsed.layers]
        sums = {n for v in values if v in found.groups for n in found.groups[v].tree.ops}
        norms = {s.norm for s in found.spreads}
        todo, seen = [*ops, *sums, *norms], set[fx.Node]()
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += [n for n in node.all_input_nodes if n.meta["const"] or n.meta.get("kind") == "sequence"]
        gone = {v for n in seen for v in self.mine.get(n, ())}
        for node in reversed(list(self.graph)):
            if node in self.new or not gone & set(node.outputs):
                continue
            if all(not v.uses() and not v.is_graph_output() for v in node.outputs):
                gone |= {v for v in node.inputs if v is not None}  # numbers that are read by no node of ours, as well
                self.graph.remove(node, safe=True)
        for value in [v for v in self.graph.initializers.values() if v in gone and not v.uses()]:
            if not value.is_graph_output():
                self._drop(value)

    def _drop(self, value: Any) -> None:
        del self.graph.initializers[value.name]
        if value in self.graph.inputs:
            self.graph.inputs.remove(value)
        self.taken.discard(value.name)

    def _named(self, layer: Layer, weight: Any, bias: Any) -> str:
        """Give new initializers the names of those that went into them, where these are free."""
        path = self.collapsed.weight_path(layer)
        lead = path.removesuffix("weight")
        self._rename(weight, path)
        if bias is not None:
            self._rename(bias, f"{lead}bias" if lead != path else f"{path}_bias")
        return str(weight.name).removesuffix(".weight")

    def _rename(self, value: Any, name: str) -> None:
        self.graph.initializers.pop(value.name)
        self.taken.discard(value.name)
        value.name = self._free(name)
        value.const_value.name = value.name
        self.graph.initializers[value.name] = value


def _ints(padding: Any) -> list[int]:
    return [int(p) for p in padding]
