"""Guards: which calls of a method give the answers that were seen while it was traced.

Every answer is worked out again with a symbol for each size of each tensor the method is given (`ShapeEnv`). A size
whose symbol is in no answer and in no condition met on the way is one that no question depends on: it may be any other.
The rest is fixed as it was seen. Torch takes symbols to be at least 2; that 1 gives the same is tried for the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reptool.capture.tracer import Recorder
from reptool.ir.nodes import name_of
from reptool.ir.trace import Event, Question, Unanswerable
from reptool.ir.walk import nodes_in
from reptool.pysource.places import asked, named
from reptool.runtime.expect import Like

_SHAPE = {"shape", "ndim", "dim", "ndimension", "size", "numel", "nelement", "len"}
_DTYPE = {"dtype", "is_floating_point", "is_complex", "itemsize", "element_size", "type"}
_DEVICE = {"device", "is_cuda", "is_cpu", "is_mps", "is_meta"}
_PLAIN = (bool, int, float, str)


class CannotGuardError(Exception):
    """The answers do not depend on what can be told from the arguments of a call."""


@dataclass
class Guard:
    """The arguments of one traced call.

    Args:
        names: the method's parameters in order.
        values: what each was: `Like` for tensors, plain values as they were.
    """

    names: tuple[str, ...]
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ", ".join(f"{n}={v}" for n, v in zip(self.names, self.values, strict=True))


def guard(event: Event, asked: Iterable[Question], recorder: Recorder) -> Guard:
    """What a call must be given so that these questions are answered as they were.

    Args:
        event: the traced call.
        asked: the questions, asked anywhere during that call.
        recorder: the one that traced it.

    Raises:
        CannotGuardError: an answer depends on something else.
    """
    questions = list(asked)
    entry = {n for n in (*nodes_in(event.args), *nodes_in(event.kwargs)) if not n.meta["const"]}
    cone: set[fx.Node] = set()
    for question in questions:
        cone |= _cone(question, entry)
    read = {_read(n) for n in cone} - {""}
    if read - {"shape", "dtype", "device"}:
        raise CannotGuardError(f"it asks for {sorted(read - {'shape', 'dtype', 'device'})[0]!r}")
    sizes = _free_sizes(entry, cone, questions, recorder)

    def seen(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value.meta["const"]:
                raise CannotGuardError(f"it is given {named(value)}")
            return seen_value(value, _evaluated(value, recorder))
        return _plain(value, seen)

    def seen_value(node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            dtype = value.dtype if "dtype" in read else None
            return Like(sizes[node], dtype, value.device.type if "device" in read else None)
        return _plain(value, lambda v: seen_value(node, v))

    signature = inspect.signature(getattr(type(event.module), event.method))
    try:
        bound = signature.bind(event.module, *event.args, **event.kwargs)
    except TypeError as error:
        raise CannotGuardError(f"its call does not fit its signature ({error})") from error
    bound.apply_defaults()
    names = tuple(signature.parameters)[1:]
    return Guard(names, tuple(seen(bound.arguments[n]) for n in names))


def _plain(value: Any, seen: Callable[[Any], Any]) -> Any:
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(map(seen, value))
    if type(value) is dict and all(isinstance(k, str) for k in value):
        return {k: seen(v) for k, v in value.items()}
    raise CannotGuardError(f"it is given a {type(value).__name__}")


def _evaluated(node: fx.Node, recorder: Recorder) -> Any:
    try:
        return recorder.evaluate(node)
    except Unanswerable as error:
        raise CannotGuardError(str(error)) from error


def _cone(question: Question, entry: set[fx.Node]) -> set[fx.Node]:
    """The nodes that an answer is computed by, from the arguments on."""
    if question.at is None:
        raise CannotGuardError(f"it asks for {asked(question)}")
    cone: set[fx.Node] = set()
    stack = [question.at]
    while stack:
        node = stack.pop()
        if node in cone or node.meta["const"]:
            continue
        cone.add(node)
        if node in entry:
            continue
        if node.op == "placeholder":
            raise CannotGuardError(f"it asks about {named(node)}, which is no argument of it")
        if node.op == "call_method" and name_of(node).endswith("_"):
            raise CannotGuardError(f"{named(node)} is written in place")
        stack += node.all_input_nodes
    return cone


def _read(node: fx.Node) -> str:
    """What a node tells of a tensor: 'shape', 'dtype', 'device', something else by its name, '' for no number."""
    if node.op == "call_module" or not any(n.meta.get("kind") in ("tensor", "unknown") for n in node.all_input_nodes):
        return ""
    name = str(node.args[1]) if node.target is getattr else name_of(node)
    for kind, names in (("shape", _SHAPE), ("dtype", _DTYPE), ("device", _DEVICE)):
        if name in names:
            return kind
    return "" if node.meta.get("kind") in ("tensor", "sequence") else name


# --- sizes that no answer depends on --------------------------------------------------------------------------------
def _free_sizes(
    entry: set[fx.Node], cone: set[fx.Node], asked: list[Question], recorder: Recorder
) -> dict[fx.Node, tuple[int, ...]]:
    """The sizes of each argument; a negative one stands for every size from there on."""
    tensors = {n: v for n in entry if isinstance(v := _evaluated(n, recorder), Tensor)}
    out = {n: list(v.shape) for n, v in tensors.items()}
    try:
        free = _unasked(tensors, cone, asked, recorder)
    except Exception:  # torch has no symbolic shapes for an operation on the way
        free = set()
    batch = {(n, a) for n, a in free if a == 0}
    if batch and not _single(tensors, batch, cone, asked, recorder):
        for node, axis in [p for p in batch if tensors[p[0]].shape[0] == 1]:
            free.discard((node, axis))
        batch = set()
    for node, axis in free:
        out[node][axis] = -1 if (node, axis) in batch else -2
    return {n: tuple(v) for n, v in out.items()}


def _unasked(
    tensors: dict[fx.Node, Tensor], cone: set[fx.Node], asked: list[Question], recorder: Recorder
) -> set[tuple[fx.Node, int]]:
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    env = ShapeEnv(duck_shape=False)
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    known: dict[fx.Node, Any] = {}
    symbols: dict[tuple[fx.Node, int], Any] = {}
    for i, (node, tensor) in enumerate(tensors.items()):
        shape = [3 if a == 0 and n == 1 else n for a, n in enumerate(tensor.shape)]
        context: Any = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DYNAMIC] * len(shape), constraint_sizes=[None] * len(shape)
        )
        stand_in = torch.empty(shape, dtype=tensor.dtype)
        known[node] = mode.from_tensor(stand_in, symbolic_context=context, source=ConstantSource(f"x{i}"))
        for axis, size in enumerate(known[node].shape):
            if isinstance(size, torch.SymInt):
                symbols[node, axis] = size.node.expr
    if not _same_answers(known, cone, asked, recorder, mode) or env.deferred_runtime_asserts:
        return set()
    met: set[Any] = set(env.replacements)
    for condition in env.guards:
        met |= set(condition.expr.free_symbols)
    return {place for place, symbol in symbols.items() if symbol not in met and env.var_to_range[symbol].lower == 2}


def _single(
    tensors: dict[fx.Node, Tensor],
    batch: set[tuple[fx.Node, int]],
    cone: set[fx.Node],
    asked: list[Question],
    recorder: Recorder,
) -> bool:
    """Whether the answers are the same for a batch of one."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    known: dict[fx.Node, Any] = {}
    for node, tensor in tensors.items():
        shape = [1 if (node, a) in batch else n for a, n in enumerate(tensor.shape)]
        known[node] = mode.from_tensor(torch.empty(shape, dtype=tensor.dtype))
    try:
        return _same_answers(known, cone, asked, recorder, mode)
    except Exception:  # the model does not run for one
        return False


def _same_answers(
    known: dict[fx.Node, Any], cone: set[fx.Node], asked: list[Question], recorder: Recorder, mode: Any
) -> bool:
    with torch.no_grad(), mode:
        for node in recorder.graph.nodes:
            if node in cone and node not in known:
                both = (node.args, node.kwargs)
                args, kwargs = (fx.node.map_arg(a, lambda n: _value(n, known, recorder)) for a in both)
                known[node] = recorder.known.run(node, args, kwargs)
        for question in asked:
            assert question.at is not None and question.read is not None
            answer = question.read(known[question.at])
            if type(answer) is not type(question.answer) or answer != question.answer:
                return False
    return True


def _value(node: fx.Node, known: dict[fx.Node, Any], recorder: Recorder) -> Any:
    if node in known:
        return known[node]
    return recorder.evaluate(node)  # a constant, or an argument that is a number
