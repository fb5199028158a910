"""Reasons: every norm, computed weight and scale that still runs has one, whether or not a rule looked at it.

An *absorbable* operation holds constants which a neighbouring layer could take: a norm, a layer whose weight is
computed anew at each call, a scale or shift by a constant along the channels. The planner refuses what it tried. Each
absorbable operation that is still computed and was not refused gets its reason here: which plan with it was given up;
who else reads the layer in front of it; why the layers behind it cannot take it; or what stands there in place of
a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn

from reptool.ir.computed_weights import has_computed_weight, has_weight_property
from reptool.ir.kinds.casts import is_cast
from reptool.ir.nodes import barrier, metadata_read, name_of, takes_weight, weight_argument
from reptool.ir.ops import Affine, Concat, Fill, Op, Pieces, Reduced, Stack, Sum, View
from reptool.ir.trace import Trace
from reptool.plan.candidates import Analysis
from reptool.plan.forms import Form, start, through
from reptool.plan.pricing import Prices
from reptool.pysource.places import NORMS, called, function_of, listed, named
from reptool.refusal import Code, Refusal

_ENDINGS = ("BatchNorm", "Norm1d", "Norm2d", "Norm3d", "LayerNorm", "GroupNorm", "RMSNorm")
_NORM_FUNCTIONS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
_SCALES = frozenset(
    ["add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "truediv", "addcmul", "addcdiv",
     "lerp", "rsub", "iadd", "isub", "imul", "itruediv"]
)  # fmt: skip
_KINDS: tuple[tuple[type, str], ...] = (
    (Sum, "a sum"), (Reduced, "a sum"), (Concat, "a concatenation"), (Stack, "a stack"), (Pieces, "a piece of a value"),
    (View, "a view"), (Fill, "a padding"),
)  # fmt: skip
_PARADIGMS = {
    "bn": "a norm",
    "scale": "a scale",
    "avg_pool": "an average pooling",
    "padding": "a padding",
    "upsample": "an upsampling",
    "resample": "a resampling",
}
Tried = Mapping[fx.Node, Mapping[frozenset[fx.Node], Refusal]]


def is_compiled_norm(module: nn.Module) -> bool:
    """Whether this is a norm that `torch.jit.script` compiled."""
    return isinstance(module, torch.jit.ScriptModule) and str(getattr(module, "original_name", "")).endswith(_ENDINGS)


def is_norm(module: nn.Module) -> bool:
    """Whether a module of torch is a norm that holds constants.

    >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.LayerNorm(3, elementwise_affine=False)), is_norm(nn.ReLU())
    (True, False, False)
    """
    known = isinstance(module, NORMS) or is_compiled_norm(module)
    return known and any(True for _ in (*module.parameters(False), *module.buffers(False)))


def left_over(
    trace: Trace, found: Analysis, alive: set[fx.Node], refused: Mapping[fx.Node, Refusal], tried: Tried, values: bool
) -> dict[fx.Node, Refusal]:
    """A refusal for each site that is still computed and has none.

    Args:
        trace: what was seen.
        found: what its nodes are to the planner.
        alive: operations that are computed as they stand.
        refused: what the planner refused.
        tried: regions that were chosen and could not be carried out, by value and operations.
        values: whether values may be looked at.
    """
    left = _Left(trace, found, refused, tried, values)
    gone = {s.norm for s in found.spreads}
    for node in list(trace.graph.nodes):
        if node.meta.get("share") or node.meta.get("const") or node in gone or node in left.refused:
            continue
        if (node in alive or node not in found.ops) and left.is_site(node):
            left.refused[node] = left.why(node).at(node.name)
    return {n: r for n, r in left.refused.items() if n not in refused}


def why_left(
    trace: Trace, found: Analysis, refused: Mapping[fx.Node, Refusal], tried: Tried, values: bool
) -> Callable[[fx.Node], Refusal]:
    """What tells of an operation why nothing next to it took it; arguments as of `left_over`."""
    return _Left(trace, found, refused, tried, values).why


class _Left:
    """The absorbable operations of one trace and their reasons."""

    def __init__(
        self, trace: Trace, found: Analysis, refused: Mapping[fx.Node, Refusal], tried: Tried, values: bool
    ) -> None:
        self.trace, self.found, self.values = trace, found, values
        self.refused = dict(refused)
        self.tried = [(ops, r) for regions in tried.values() for ops, r in regions.items()]
        self.prices = Prices(found)

    # --- what is a site
    def is_site(self, node: fx.Node) -> bool:
        """Whether an operation holds constants that a layer next to it could take."""
        op = self.found.ops.get(node)
        if isinstance(op, Affine):
            if op.layer:
                return op.paradigm not in ("impulse", "own") and self._computes(node, op)
            if op.paradigm == "scale":
                return bool(op.owners) or self._at_a_layer(node)
            return op.paradigm == "bn"
        return op is None and self._is_unread(node)

    def _computes(self, node: fx.Node, op: Affine) -> bool:
        """Whether a layer's weight is computed at every call."""
        if node.op == "call_module":
            return op.computed or has_computed_weight(node.meta["module"])
        weight = weight_argument(node)
        held = weight is None or weight.op == "get_attr" or is_cast(weight)
        return (op.computed or not held) and not self.found.facts.only_follows(node)

    def _at_a_layer(self, node: fx.Node) -> bool:
        """Whether a layer could take a number by which a value is scaled or shifted."""
        behind = any(_has_layer(self.found, f.ops) for f in self.found.forms.get(node, {}).values())
        return behind or any(isinstance(op := self.found.ops.get(r), Affine) and op.layer for r in self._readers(node))

    def _is_unread(self, node: fx.Node) -> bool:
        """Whether this is a norm, a computed weight or a scale that no rule reads."""
        module = node.meta.get("module")
        if node.op == "call_module":
            return isinstance(module, nn.Module) and (is_norm(module) or has_computed_weight(module))
        if node.op not in ("call_function", "call_method"):
            return False
        name = name_of(node).strip("_")
        constants = [n for n in node.all_input_nodes if n.meta["const"] and n.meta.get("kind") == "tensor"]
        if name in _NORM_FUNCTIONS:
            return bool(constants)
        if takes_weight(node):
            weight = weight_argument(node)
            return weight is not None and weight.meta["const"] and weight.op != "get_attr" and not is_cast(weight)
        if name not in _SCALES or len(constants) == len(node.all_input_nodes):
            return False
        if "div" in name and node.args and node.args[0] in constants:
            return False  # a constant divided by a value is no scale
        return any(isinstance(v, Tensor) and _along_one(v) for v in map(self.found.facts.constant, constants))

    # --- why it is left
    def why(self, node: fx.Node) -> Refusal:
        """The first reason that can be told."""
        op = self.found.ops.get(node)
        if not isinstance(op, Affine):
            return self._unread(node)
        plans = sorted((p for p in self.tried if node in p[0]), key=lambda p: len(p[0]))
        if plans:
            return plans[0][1]
        if op.layer:
            return Refusal(Code.UNREAD, "its weight is computed anew at every call, and no rule has a place for it")
        return self._behind(node, op) or self._in_front(node, op) or self._alone(node, op)

    def _unread(self, node: fx.Node) -> Refusal:
        module = node.meta.get("module")
        batch = isinstance(module, nn.modules.batchnorm._BatchNorm) or name_of(node) == "batch_norm"
        stored = getattr(module, "running_mean", None) is not None
        if not batch and not stored and (isinstance(module, NORMS) or name_of(node).strip("_") in _NORM_FUNCTIONS):
            return Refusal(Code.NO_STATISTICS, "it normalizes by the values that it is given, at every call")
        return Refusal(Code.UNREAD, self._odd(node))

    @staticmethod
    def _odd(node: fx.Node) -> str:
        """What is unusual about a call that no rule reads."""
        module = node.meta.get("module")
        if module is None:
            return f"there is no rule for this call of {function_of(node)}"
        kind = type(module).__name__
        if node.meta.get("opaque"):
            return f"{kind} could not be followed: {node.meta['opaque']}"
        if isinstance(module, torch.jit.ScriptModule):
            return f"{module.original_name} is compiled by torch.jit.script"
        if has_weight_property(module):
            return f"{kind} computes its weight in a property"
        if node.kwargs or len(node.args) != 1:
            return f"{kind} is called with other arguments than one value"
        return f"there is no rule for {kind}"

    def _behind(self, node: fx.Node, op: Affine) -> Refusal | None:
        """Why the layer in front did not take it; None where there is no layer in front."""
        forms = [f for f in self.found.forms.get(node, {}).values() if _has_layer(self.found, f.ops - {node})]
        for form in sorted(forms, key=lambda f: len(f.ops)):
            return self._read_between(node, form) or self._dearer(node, form)
        source = self._past_identities(op.sources[0])
        refusal = self.refused.get(source)
        if refusal is None or refusal.code is Code.NO_LAYER:
            return None
        code = Code.NO_LAYER if "opaque" in source.meta else refusal.code  # nobody knows that one for a layer
        return Refusal(code, f"{named(source)}, in front of it, stays as it is: {refusal.sentence}")

    def _read_between(self, node: fx.Node, form: Form) -> Refusal | None:
        """Whether a value on the way from a layer to a site is read by others."""
        position = self.found.reads.position
        for value in sorted(form.ops - {node}, key=position.__getitem__, reverse=True):
            others = [r for r in self.found.reads.readers.get(value, ()) if r not in form.ops and not metadata_read(r)]
            if others or value in self.trace.escaped:
                sentence = f"{named(value)}, in front of it, is also read by {listed(others)}"
                return Refusal(Code.READ_ELSEWHERE, sentence)
        return None

    def _dearer(self, node: fx.Node, form: Form) -> Refusal:
        return self.prices.dearer_than(node, form) or Refusal(
            Code.DEARER, "with the layer next to it as one, what is around them would cost more"
        )

    def _in_front(self, node: fx.Node, op: Affine) -> Refusal | None:
        """Why the layers behind did not take it; None where there is none."""
        readers = list(self._readers(node))
        for reader in readers:
            other = self.found.ops.get(reader)
            if not isinstance(other, Affine) or not other.layer:
                continue
            form = next((f for f in self.found.forms.get(reader, {}).values() if node in f.ops), None)
            rest = [r for r in readers if r is not reader]
            if form is not None and (rest or node in self.trace.escaped):
                sentence = f"{named(reader)}, behind it, could take it, but it is also read by {listed(rest)}"
                return Refusal(Code.READ_ELSEWHERE, sentence)
            reason = self.refused.get(reader) if form is not None else self._composed(node, op, reader, other)
            if reason is not None:
                sentence = f"{named(reader)}, behind it, cannot take it: {reason.sentence}"
                if node in self.found.own:
                    return Refusal(reason.code, sentence)
                before = self._past_identities(op.sources[0])
                return Refusal(reason.code, f"{sentence}; in front of it stands {self._what(before)}")
            if form is not None:
                return self._dearer(reader, form)
        return None

    def _composed(self, node: fx.Node, op: Affine, reader: fx.Node, layer: Affine) -> Refusal | None:
        """What the law says to a layer behind a site."""
        alone = through(node, op, start(op.source), self.values)
        made = alone if isinstance(alone, Refusal) else through(reader, layer, alone, self.values)
        return made if isinstance(made, Refusal) else None

    def _alone(self, node: fx.Node, op: Affine) -> Refusal:
        before = self._what(self._past_identities(op.sources[0]))
        after = list(dict.fromkeys(map(self._what, self._readers(node)))) or ["nothing"]
        rest = f" and {len(after) - 3} more" if len(after) > 3 else ""
        if node in self.found.own:
            return Refusal(Code.NO_LAYER, f"no layer reads it: {', '.join(after[:3])}{rest} behind it")
        sentence = f"no layer is next to it: {before} in front of it, {', '.join(after[:3])}{rest} behind it"
        return Refusal(Code.NO_LAYER, sentence)

    # --- what stands around
    def _past_identities(self, node: fx.Node) -> fx.Node:
        while True:
            op = self.found.ops.get(node)
            if op is not None and _is_identity(op):
                node = op.sources[0]
            elif node.target is barrier and isinstance(node.args[0], fx.Node):
                node = node.args[0]
            else:
                return node

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Who reads a value, past what hands it on as it is."""
        for reader in self.found.reads.readers.get(node, ()):
            if metadata_read(reader):
                continue
            if _is_identity(self.found.ops.get(reader)) or reader.target is barrier:
                yield from self._readers(reader)
            else:
                yield reader

    def _what(self, node: fx.Node) -> str:
        """A kind of operation, in words that are the same for each of its kind."""
        if node.op == "placeholder":
            return f"the input of {self.trace.prefix!r}" if self.trace.prefix else "the model's input"
        if node.op == "output":
            return f"the output of {self.trace.prefix!r}" if self.trace.prefix else "the model's output"
        op = self.found.ops.get(node)
        if isinstance(op, Affine) and op.paradigm in _PARADIGMS:
            return _PARADIGMS[op.paradigm]
        kind = next((words for kind, words in _KINDS if isinstance(op, kind)), None)
        if kind is not None:
            return kind
        if node.op == "call_module":
            opaque = f"{called(node)!r}, whose code could not be followed"
            return opaque if node.meta.get("opaque") else type(node.meta["module"]).__name__
        return function_of(node)


def _is_identity(op: Op | None) -> bool:
    return isinstance(op, Affine) and op.paradigm == "identity" and not op.layer


def _has_layer(found: Analysis, nodes: Iterable[fx.Node]) -> bool:
    return any(isinstance(op := found.ops.get(n), Affine) and op.layer for n in nodes)


def _along_one(value: Tensor) -> bool:
    """Whether a constant varies along one axis at most."""
    return value.is_floating_point() and sum(size != 1 for size in value.shape) <= 1
